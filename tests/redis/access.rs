//! Who we are to Redis, and who it is to us.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

use crate::support::eventually;
use crate::support::lab::Lab;
use crate::support::redis::Redis;
use crate::{
    HOST, PASSWORD, PATIENCE, PORT, caller, documented_acl, get, is_granted, is_up, make_user, of_limit,
    secret,
};

const TLS_PORT: u16 = 6380;
const ADMIN: [&str; 2] = ["-a", "admin"];

/// An authority, and the directory of its certificates.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: PathBuf,
}

impl Authority {
    pub(crate) fn new(lab: &Lab, name: &str) -> Self {
        let mut root = CertificateParams::default();
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        root.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(root, KeyPair::generate().expect("a key")).expect("a root");
        let dir = lab.dir().join(name);
        std::fs::create_dir_all(&dir).expect("the lab's directory");
        std::fs::write(dir.join("ca.crt"), issuer.pem()).expect("the lab's directory");
        Self { issuer, dir }
    }

    pub(crate) fn ca(&self) -> PathBuf {
        self.dir.join("ca.crt")
    }

    /// A certificate for a name, and its key.
    pub(crate) fn issue(&self, name: &str) -> (PathBuf, PathBuf) {
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        // A leaf with its issuer's subject passes for self-signed.
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a leaf");
        let (certificate_file, key_file) =
            (self.dir.join(format!("{name}.crt")), self.dir.join(format!("{name}.key")));
        std::fs::write(&certificate_file, certificate.pem()).expect("the lab's directory");
        secret(&key_file, &key.serialize_pem());
        (certificate_file, key_file)
    }
}

/// A Redis that speaks TLS with who has a certificate, and where only two users are let in.
fn guarded(lab: &Lab, authority: &Authority, protocol: &str) -> Redis {
    // The certificate is for the name alone: it is dialled by its address.
    let (certificate, key) = authority.issue("redis.test");
    let shown = |path: &Path| path.display().to_string();
    let options = [
        ("--tls-port", TLS_PORT.to_string()),
        ("--tls-cert-file", shown(&certificate)),
        ("--tls-key-file", shown(&key)),
        ("--tls-ca-cert-file", shown(&authority.ca())),
        ("--tls-auth-clients", "yes".into()),
        ("--tls-protocols", protocol.into()),
        ("--requirepass", "admin".into()),
    ];
    let options: Vec<&str> = options.iter().flat_map(|(name, value)| [*name, value]).collect();
    let redis = lab.redis_with("redis", &options);
    make_user(redis.pod(), 6379, &ADMIN, &documented_acl()[..1]);
    redis
}

/// The configuration of a sidecar whose way to `redis` is described by `more`.
fn yaml(redis: &Redis, more: &str) -> String {
    let address = redis.pod().v4();
    format!(
        "redis: {{ url: \"rediss://{address}:{TLS_PORT}\", budget: 500ms, on_new_state: full, user: pannier, {more} }}
limits: [{{ name: all, rate: 1000/s, without_redis: closed }}]
"
    )
}

fn tls(ca: &Path, (certificate, key): &(PathBuf, PathBuf)) -> String {
    format!(
        "tls: {{ ca: {}, certificate: {}, key: {}, server_name: redis.test }}",
        ca.display(),
        certificate.display(),
        key.display()
    )
}

#[test]
fn tls_and_the_documented_user_with_a_password_from_a_file() {
    for protocol in ["TLSv1.2", "TLSv1.3"] {
        let lab = Lab::new();
        let authority = Authority::new(&lab, "authority");
        let redis = guarded(&lab, &authority, protocol);
        let (orders, pod) = (lab.pod("orders"), lab.pod("caller"));
        let app = orders.app(orders.addresses(PORT)[0]);
        let password = pod.dir().join("password");
        secret(&password, &format!("{PASSWORD}\n"));
        let own = authority.issue("caller");
        let more = format!("password_file: {}, {}", password.display(), tls(&authority.ca(), &own));
        let sidecar = caller(&pod, &yaml(&redis, &more));
        is_granted(&sidecar, &pod, app.address(), "/", "all");
        assert_eq!(of_limit(&sidecar, "all", "redis_errors"), 0, "{}", sidecar.log());

        // The user may nothing but what limits need.
        let as_user = |command: &[&str]| {
            let login = ["--user", "pannier", "-a", PASSWORD];
            redis.cli(&[&login[..], command].concat())
        };
        redis.cli(&[&ADMIN[..], &["SET", "other", "1"]].concat());
        for command in [
            &["GET", "other"][..],
            &["SET", "other", "2"],
            &["FLUSHALL"],
            &["CONFIG", "GET", "*"],
            &["KEYS", "*"],
            &["EVAL", "return 1", "0"],
            &["SCRIPT", "FLUSH"],
            &["DEL", "pannier:x"],
            &["ACL", "LIST"],
            &["SUBSCRIBE", "x"],
        ] {
            let said = as_user(command);
            assert!(said.starts_with("NOPERM"), "{command:?}: {said}");
        }
        assert_eq!(redis.cli(&[&ADMIN[..], &["GET", "other"]].concat()).trim(), "1");

        // The password is renewed, and whoever is connected must come back with it.
        redis.cli(&[&ADMIN[..], &["ACL", "SETUSER", "pannier", "resetpass", ">hush-2"]].concat());
        secret(&password, "hush-2");
        redis.cli(&[&ADMIN[..], &["CLIENT", "KILL", "USER", "pannier"]].concat());
        is_granted(&sidecar, &pod, app.address(), "/", "all");
        assert!(!sidecar.log().contains("hush"), "{}", sidecar.log());
    }
}

#[test]
fn what_is_wrong_with_the_way_is_said() {
    let lab = Lab::new();
    let authority = Authority::new(&lab, "authority");
    let stranger = Authority::new(&lab, "stranger");
    let redis = guarded(&lab, &authority, "TLSv1.3");
    let orders = lab.pod("orders");
    let app = orders.app(orders.addresses(PORT)[0]);
    let own = authority.issue("caller");
    let (right, wrong) = (lab.dir().join("right"), lab.dir().join("wrong"));
    secret(&right, PASSWORD);
    secret(&wrong, "hush-wrong");
    let file = |password: &Path| format!("password_file: {}, ", password.display());
    let ca = authority.ca();
    let cases = [
        (
            "password",
            file(&wrong) + &tls(&ca, &own),
            "does not accept the user `pannier` with this password: WRONGPASS",
        ),
        ("file", file(&lab.dir().join("none")) + &tls(&ca, &own), "redis.password_file: cannot read "),
        (
            "ca",
            file(&right) + &tls(&stranger.ca(), &own),
            "its certificate leads to no root of `redis.tls.ca`",
        ),
        (
            "name",
            file(&right) + &tls(&ca, &own).replace("redis.test", "other.test"),
            "its certificate is refused: certificate not valid for name",
        ),
        ("own", file(&right) + &tls(&ca, &stranger.issue("caller")), "(`redis.tls.certificate`)"),
        (
            "none",
            file(&right) + &format!("tls: {{ ca: {}, server_name: redis.test }}", ca.display()),
            "(`redis.tls.certificate`)",
        ),
    ];
    for (name, more, words) in cases {
        let pod = lab.pod(name);
        let sidecar = caller(&pod, &yaml(&redis, &more));
        eventually(PATIENCE, &format!("words about the {name}"), || {
            sidecar.log().contains(words).then_some(())
        });
        assert!(!is_up(&sidecar));
        let answer = get(&pod, app.address(), "/", "a");
        assert_eq!(
            (answer.status.as_u16(), answer.refused()),
            (503, Some("limit.unavailable")),
            "{name} {HOST}"
        );
        assert!(!sidecar.log().contains("hush"), "{}", sidecar.log());
        assert!(!sidecar.get("/config").text().contains("hush"));
    }
}
