//! Who we are to a server, and who it is to us: its user and password, and TLS. What lies in files
//! is read at every connect, so that a renewed password or certificate is followed.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use crate::config::model;
use crate::config::units::RedisUrl;
use crate::identity;

/// How one kind of server is approached. Its `Debug` shows no password.
#[derive(Debug, Clone, Default)]
pub(super) struct Access {
    pub(super) user: Option<String>,
    password: Password,
    pub(super) database: u32,
    tls: Option<model::RedisTls>,
    /// Where in the configuration the password's file stands.
    place: &'static str,
}

#[derive(Clone, Default)]
enum Password {
    #[default]
    None,
    Written(String),
    File(PathBuf),
}

/// What a connection needs of the files.
pub(super) struct Loaded {
    pub(super) password: Option<String>,
    pub(super) tls: Option<Arc<ClientConfig>>,
}

/// What is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    /// The key that names it, as `redis.tls.ca`.
    path: &'static str,
    message: String,
}

impl Access {
    /// To the servers that hold the limits.
    pub(super) fn to_redis(redis: &model::Redis) -> Self {
        let urls = match (&redis.url, &redis.cluster) {
            (Some(url), _) => std::slice::from_ref(url),
            (None, Some(nodes)) => nodes.as_slice(),
            (None, None) => &[],
        };
        let by_tls = urls.iter().chain(sentinels(redis)).any(|url| url.tls);
        Self {
            database: urls.first().and_then(|url| url.database).unwrap_or(0),
            tls: by_tls.then(|| redis.tls.clone().unwrap_or_default()),
            ..Self::of(urls, redis.user.as_ref(), redis.password_file.as_ref(), "redis.password_file")
        }
    }

    /// To the sentinels.
    pub(super) fn to_sentinels(redis: &model::Redis, sentinel: &model::Sentinel) -> Self {
        let (user, file) = (sentinel.user.as_ref(), sentinel.password_file.as_ref());
        let tls = Self::to_redis(redis).tls;
        Self { tls, ..Self::of(sentinel.urls.as_slice(), user, file, "redis.sentinel.password_file") }
    }

    fn of(urls: &[RedisUrl], user: Option<&String>, file: Option<&PathBuf>, place: &'static str) -> Self {
        let password = match (file, urls.first().and_then(|url| url.password.as_ref())) {
            (Some(file), _) => Password::File(file.clone()),
            (None, Some(password)) => Password::Written(password.clone()),
            (None, None) => Password::None,
        };
        let user = user.or(urls.first().and_then(|url| url.user.as_ref())).cloned();
        Self { user, password, database: 0, tls: None, place }
    }

    /// Reads the files. Blocks for as long as they take.
    pub(super) fn load(&self) -> Result<Loaded, Fault> {
        let password = match &self.password {
            Password::None => None,
            Password::Written(password) => Some(password.clone()),
            Password::File(file) => Some(password(file).map_err(|message| Fault::at(self.place, message))?),
        };
        let tls = self.tls.as_ref().map(|tls| client(tls).map(Arc::new)).transpose()?;
        Ok(Loaded { password, tls })
    }

    /// The name that the certificate must be for, where it is not the host that is dialled.
    pub(super) fn server_name(&self) -> Option<&str> {
        self.tls.as_ref()?.server_name.as_deref()
    }

    /// Whose certificates are trusted, for a message.
    pub(super) fn authority(&self) -> &'static str {
        match self.tls.as_ref().and_then(|tls| tls.ca.as_ref()) {
            Some(_) => "`redis.tls.ca`",
            None => "the system's roots (`redis.tls.ca` is not set)",
        }
    }
}

/// Reads every file that the configuration names for Redis, and says what is wrong with which: its key,
/// as `redis.tls.ca`, and words.
pub(crate) fn faults(redis: &model::Redis) -> Vec<(String, String)> {
    let files = redis.password_file.iter().map(|file| ("redis.password_file", file));
    let of_sentinels = redis.sentinel.iter().flat_map(|sentinel| &sentinel.password_file);
    let files = files.chain(of_sentinels.map(|file| ("redis.sentinel.password_file", file)));
    let passwords =
        files.filter_map(|(path, file)| password(file).err().map(|message| Fault::at(path, message)));
    let tls = redis.tls.as_ref().map(|tls| {
        let roots = tls.ca.as_ref().and_then(|ca| roots(ca).err());
        let own = own(tls).err();
        roots.into_iter().chain(own)
    });
    let all = passwords.chain(tls.into_iter().flatten());
    all.map(|Fault { path, message }| (path.into(), message)).collect()
}

fn sentinels(redis: &model::Redis) -> impl Iterator<Item = &RedisUrl> {
    redis.sentinel.iter().flat_map(|sentinel| sentinel.urls.as_slice())
}

/// The password in a file: its first line, which is all of it.
fn password(file: &Path) -> Result<String, String> {
    let text = read(file)?;
    let text = String::from_utf8(text).map_err(|_| format!("{} is no text", file.display()))?;
    let password = text.strip_suffix('\n').unwrap_or(&text);
    let password = password.strip_suffix('\r').unwrap_or(password);
    match password {
        "" => Err(format!("{} is empty; expected the password", file.display())),
        _ if password.contains('\n') => {
            Err(format!("{} has more than one line; expected the password alone", file.display()))
        }
        _ => Ok(password.to_owned()),
    }
}

/// Redis may speak no more than TLS 1.2.
fn client(tls: &model::RedisTls) -> Result<ClientConfig, Fault> {
    let provider = CryptoProvider {
        cipher_suites: aws_lc_rs::ALL_CIPHER_SUITES.to_vec(),
        ..CryptoProvider::clone(&identity::provider())
    };
    let roots = match &tls.ca {
        Some(ca) => roots(ca)?,
        None => system_roots().map_err(|message| Fault::at("redis.tls.ca", message))?,
    };
    let builder = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .expect("the provider has suites of TLS 1.2 and 1.3")
        .with_root_certificates(roots);
    match own(tls)? {
        None => Ok(builder.with_no_client_auth()),
        Some((chain, key)) => builder
            .with_client_auth_cert(chain, key)
            .map_err(|error| Fault::at("redis.tls.key", format!("it is not the certificate's: {error}"))),
    }
}

fn roots(ca: &Path) -> Result<RootCertStore, Fault> {
    let wrong = |message: String| Fault::at("redis.tls.ca", message);
    let mut roots = RootCertStore::empty();
    for certificate in certificates(ca).map_err(wrong)? {
        let bad = |error| wrong(format!("{} holds what is no root: {error}", ca.display()));
        roots.add(certificate).map_err(bad)?;
    }
    Ok(roots)
}

/// Our own chain and key, where they are configured.
fn own(
    tls: &model::RedisTls,
) -> Result<Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>, Fault> {
    let (Some(certificate), Some(key)) = (&tls.certificate, &tls.key) else { return Ok(None) };
    let chain = certificates(certificate).map_err(|message| Fault::at("redis.tls.certificate", message))?;
    let wrong = |message| Fault::at("redis.tls.key", message);
    let read = read(key).map_err(wrong)?;
    let key = PrivateKeyDer::from_pem_slice(&read).map_err(|error| {
        let file = key.display();
        wrong(match error {
            pem::Error::NoItemsFound => format!("{file} holds no unencrypted private key in PEM"),
            error => format!("{file} is no valid PEM: {error}"),
        })
    })?;
    Ok(Some((chain, key)))
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let text = read(file)?;
    let certificates = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| format!("{} is no valid PEM: {error}", file.display()))?;
    match certificates.is_empty() {
        true => Err(format!("{} holds no certificate in PEM", file.display())),
        false => Ok(certificates),
    }
}

/// What this machine trusts, read once.
fn system_roots() -> Result<RootCertStore, String> {
    static ROOTS: OnceLock<RootCertStore> = OnceLock::new();
    if let Some(roots) = ROOTS.get() {
        return Ok(roots.clone());
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err("it is not set, and this system has no roots of its own".into());
    }
    Ok(ROOTS.get_or_init(|| roots).clone())
}

fn read(file: &Path) -> Result<Vec<u8>, String> {
    fs::read(file).map_err(|error| format!("cannot read {}: {error}", file.display()))
}

impl Fault {
    fn at(path: &'static str, message: String) -> Self {
        Self { path, message }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Password::None => f.write_str("none"),
            Password::Written(_) => f.write_str("***"),
            Password::File(file) => file.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::ca::Authority;

    #[test]
    fn files_are_read_at_every_load() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("password");
        let mut redis = model::Redis::at("redis://h".parse().expect("a URL"));
        redis.password_file = Some(file.clone());
        let access = Access::to_redis(&redis);
        let loaded = || access.load().map(|loaded| loaded.password).map_err(|fault| fault.to_string());
        let none = loaded().expect_err("no file");
        assert!(none.starts_with("redis.password_file: cannot read "), "{none}");
        for (text, password) in [("one", "one"), ("two\n", "two"), ("thr ee\r\n", "thr ee")] {
            fs::write(&file, text).expect("our own file");
            assert_eq!(loaded(), Ok(Some(password.into())));
        }
        for (text, why) in [("\n", "is empty"), ("a\nb\n", "more than one line")] {
            fs::write(&file, text).expect("our own file");
            assert!(loaded().expect_err(text).contains(why));
        }
    }

    #[test]
    fn each_file_of_tls_is_named_when_it_is_wrong() {
        let dir = tempfile::tempdir().expect("a directory");
        let authority = Authority::new("td").expect("a root");
        let files = authority.leaf("a").map(|leaf| leaf.write(dir.path()).expect("our own files"));
        let files = files.expect("a leaf");
        let tls = model::RedisTls {
            ca: Some(files.bundle.clone()),
            certificate: Some(files.certificate.clone()),
            key: Some(files.key.clone()),
            server_name: None,
        };
        let of = |tls: &model::RedisTls| {
            let mut redis = model::Redis::at("rediss://h".parse().expect("a URL"));
            redis.tls = Some(tls.clone());
            let load = Access::to_redis(&redis).load().err();
            let found = load.clone().map(|Fault { path, message }| (path.to_owned(), message));
            assert_eq!(faults(&redis).first(), found.as_ref());
            load.map(|fault| fault.path)
        };
        assert_eq!(of(&tls), None);
        let bad = dir.path().join("bad");
        fs::write(&bad, "no PEM").expect("our own file");
        for file in [dir.path().join("none"), bad] {
            let wrong = Some(file);
            assert_eq!(of(&model::RedisTls { ca: wrong.clone(), ..tls.clone() }), Some("redis.tls.ca"));
            let certificate = of(&model::RedisTls { certificate: wrong.clone(), ..tls.clone() });
            assert_eq!(certificate, Some("redis.tls.certificate"));
            assert_eq!(of(&model::RedisTls { key: wrong, ..tls.clone() }), Some("redis.tls.key"));
        }
    }

    #[test]
    fn who_we_are_to_whom() {
        let parse = |text: &str| crate::config::parse(text, "t").expect("sound").redis.expect("a Redis");
        let redis = parse(
            "redis: { sentinel: { master: m, urls: ['rediss://s:hush@h'] }, user: u, password_file: f }",
        );
        let access = Access::to_redis(&redis);
        assert_eq!(access.user.as_deref(), Some("u"));
        assert!(matches!(&access.password, Password::File(file) if file == Path::new("f")));
        assert!(access.tls.is_some(), "the master is reached as the sentinels are");
        let access = Access::to_sentinels(&redis, redis.sentinel.as_ref().expect("sentinels"));
        assert_eq!(access.user.as_deref(), Some("s"));
        assert!(matches!(&access.password, Password::Written(password) if password == "hush"));
        assert!(access.tls.is_some() && !format!("{access:?}").contains("hush"));
        let access = Access::to_redis(&parse("redis: { url: 'redis://u:p@h/3' }"));
        assert_eq!((access.user.as_deref(), access.database, access.tls), (Some("u"), 3, None));
    }
}
