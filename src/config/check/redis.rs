//! Where Redis is, who we are to it, and who it is to us: what must agree.

use std::path::Path;

use rustls_pki_types::ServerName;

use super::{Checker, Place};
use crate::config::model::{Model, Redis, RedisTls};
use crate::config::units::{OneOrMany, RedisUrl};

impl<'a> Checker<'a, '_> {
    pub(super) fn redis(&mut self, model: &Model) {
        let Some(redis) = &model.redis else { return };
        let place = self.root.key("redis");
        self.topology(redis, &place);
        self.credentials(redis, &place);
        if let Some(tls) = &redis.tls {
            self.redis_tls(redis, tls, &place.key("tls"));
        }
        self.not_zero(&place.key("budget"), redis.budget);
        let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':');
        if redis.prefix.is_empty() || redis.prefix.len() > 64 || !redis.prefix.bytes().all(ok) {
            let message = "expected 1 to 64 of letters, digits, `-`, `_`, `.` and `:`";
            self.fault(&place.key("prefix"), message);
        }
    }

    /// Exactly one way to Redis, and all its URLs of one kind.
    fn topology(&mut self, redis: &Redis, place: &Place<'a>) {
        let ways = ["url", "sentinel", "cluster"];
        let written: Vec<&str> = ways.into_iter().filter(|way| place.key(way).is_written()).collect();
        match written[..] {
            [] => self.fault(place, "expected one of `url`, `sentinel` and `cluster`: where Redis is"),
            [first, ref others @ ..] => {
                for other in others {
                    let message = format!("`{first}` says already where Redis is; expected one of the two");
                    self.fault(&place.key(other), message);
                }
            }
        }
        if let Some(sentinel) = &redis.sentinel {
            let place = place.key("sentinel");
            if sentinel.master.is_empty() || !sentinel.master.bytes().all(|b| b.is_ascii_graphic()) {
                self.fault(&place.key("master"), "expected the name that the sentinels have for the master");
            }
            self.urls(&place.key("urls"), &sentinel.urls, "sentinel", "a sentinel has no databases");
            let credentials = Credentials {
                urls: sentinel.urls.as_slice(),
                user: sentinel.user.as_deref(),
                password_file: sentinel.password_file.as_deref(),
            };
            self.agree(credentials, &place);
        }
        if let Some(nodes) = &redis.cluster {
            let why = "a cluster has no databases but 0";
            self.urls(&place.key("cluster"), nodes, "node", why);
        }
    }

    fn urls(&mut self, place: &Place<'a>, urls: &OneOrMany<RedisUrl>, what: &str, databases: &str) {
        let list = urls.as_slice();
        if list.is_empty() && place.is_empty_list() {
            self.fault(place, format!("an empty list names no {what}; expected at least one URL"));
        }
        for (i, (url, place)) in list.iter().zip(place.items()).enumerate() {
            if list[..i].iter().any(|other| (&other.host, other.port) == (&url.host, url.port)) {
                self.fault(&place, format!("this {what} is in the list already"));
            }
            if url.tls != list[0].tls {
                self.fault(&place, "expected all of `redis://` or all of `rediss://`");
            }
            if (&url.user, &url.password) != (&list[0].user, &list[0].password) {
                let message = "another user or password than the first; expected the same, or `user` and \
                               `password_file` instead";
                self.fault(&place, message);
            }
            if url.database.is_some_and(|database| database != 0) {
                self.fault(&place, format!("{databases}; expected a URL without one"));
            }
        }
    }

    /// Who we are to Redis itself.
    fn credentials(&mut self, redis: &Redis, place: &Place<'a>) {
        let urls = match (&redis.url, &redis.cluster) {
            (Some(url), _) => std::slice::from_ref(url),
            (None, Some(nodes)) => nodes.as_slice(),
            (None, None) => &[],
        };
        let (user, password_file) = (redis.user.as_deref(), redis.password_file.as_deref());
        self.agree(Credentials { urls, user, password_file }, place);
    }

    fn agree(&mut self, who: Credentials<'_>, place: &Place<'a>) {
        let Credentials { urls, user, password_file } = who;
        let (user_place, file_place) = (place.key("user"), place.key("password_file"));
        let in_url = |has: fn(&RedisUrl) -> bool| urls.iter().any(has);
        if user.is_some_and(|user| user.is_empty() || !user.bytes().all(|b| b.is_ascii_graphic())) {
            self.fault(&user_place, "expected a user's name, without spaces");
        }
        if user.is_some() && in_url(|url| url.user.is_some()) {
            self.fault(&user_place, "a user stands in the URL too; expected one of the two");
        }
        if password_file.is_some() && in_url(|url| url.password.is_some()) {
            self.fault(&file_place, "a password stands in the URL too; expected one of the two");
        }
        if password_file.is_some_and(|file| file.as_os_str().is_empty()) {
            self.fault(&file_place, "expected a file's path");
        }
        let has_user = user.is_some() || in_url(|url| url.user.is_some());
        // A password that is wrong in itself is reported already.
        let has_password = file_place.is_written() || in_url(|url| url.password.is_some());
        if has_user && !has_password {
            let place = if user.is_some() { &user_place } else { place };
            self.fault(place, "a user has a password; expected `password_file` beside it");
        }
    }

    fn redis_tls(&mut self, redis: &Redis, tls: &RedisTls, place: &Place<'a>) {
        let urls = redis.url.iter().map(std::slice::from_ref);
        let urls = urls
            .chain(redis.sentinel.iter().map(|sentinel| sentinel.urls.as_slice()))
            .chain(redis.cluster.iter().map(OneOrMany::as_slice));
        if urls.flatten().any(|url| !url.tls) {
            self.fault(place, "`redis://` is plaintext; expected `rediss://`, or no `tls`");
        }
        for (key, file) in [("ca", &tls.ca), ("certificate", &tls.certificate), ("key", &tls.key)] {
            if file.as_ref().is_some_and(|file| file.as_os_str().is_empty()) {
                self.fault(&place.key(key), "expected a file's path");
            }
        }
        for (one, other) in [("certificate", "key"), ("key", "certificate")] {
            if place.key(one).is_written() && !place.key(other).is_written() {
                self.fault(&place.key(one), format!("expected `{other}` beside it"));
            }
        }
        if tls.server_name.as_ref().is_some_and(|name| ServerName::try_from(name.as_str()).is_err()) {
            self.fault(&place.key("server_name"), "expected a DNS name or an address, without a port");
        }
    }
}

/// What says who we are.
struct Credentials<'a> {
    urls: &'a [RedisUrl],
    user: Option<&'a str>,
    password_file: Option<&'a Path>,
}

#[cfg(test)]
mod tests {
    use crate::config::parse;

    #[track_caller]
    fn fault(redis: &str, expected: &str) {
        let text = format!("redis: {{ {redis} }}");
        let problems = parse(&text, "t").expect_err("the text was taken").to_string();
        assert!(!problems.contains("hush"), "{problems}");
        let found: Vec<_> = problems.lines().collect();
        let expected = format!("t:{expected}");
        assert!(
            found.len() == 1 && found[0].starts_with(&expected),
            "expected `{expected}`, found {found:#?}"
        );
    }

    #[track_caller]
    fn good(redis: &str) {
        parse(&format!("redis: {{ {redis} }}"), "t").unwrap_or_else(|problems| panic!("{problems}"));
    }

    #[test]
    fn one_way_to_redis() {
        good("url: 'redis://x'");
        good("cluster: 'redis://x'");
        good("cluster: ['rediss://u:p@x', 'rediss://u:p@y/0']");
        good(
            "sentinel: { master: limits, urls: ['redis://:p@s1', 'redis://:p@s2:26380'] }, user: a, password_file: f",
        );
        fault("budget: 1s", "1:1: redis: expected one of `url`, `sentinel` and `cluster`");
        fault("url: 'http://x'", "1:15: redis.url: the scheme `http` is not known");
        fault("url: 'redis://x', cluster: 'redis://x'", "1:37: redis.cluster: `url` says already");
        fault("url: 'redis://u:hush@x:y'", "1:15: redis.url: the host or the port is none");
        fault("cluster: []", "1:19: redis.cluster: an empty list names no node");
        fault("cluster: ['redis://x/2']", "1:20: redis.cluster[0]: a cluster has no databases");
        fault("cluster: ['redis://x', 'rediss://y']", "1:33: redis.cluster[1]: expected all of `redis://`");
        fault("cluster: ['redis://x', 'redis://x']", "1:33: redis.cluster[1]: this node is in the list");
        fault("cluster: ['redis://u:hush@x', 'redis://y']", "1:40: redis.cluster[1]: another user");
        fault("sentinel: { urls: 'redis://x' }", "1:20: redis.sentinel: `master` is missing");
        fault(
            "sentinel: { master: '', urls: 'redis://x' }",
            "1:30: redis.sentinel.master: expected the name",
        );
        fault("sentinel: { master: m, urls: [] }", "1:39: redis.sentinel.urls: an empty list");
        fault("sentinel: { master: m, urls: 'redis://x/1' }", "1:39: redis.sentinel.urls: a sentinel has no");
    }

    #[test]
    fn one_user_and_one_password() {
        good("url: 'redis://x', password_file: f");
        good("url: 'redis://u@x', password_file: f");
        fault("url: 'redis://u:hush@x', password_file: f", "1:50: redis.password_file: a password stands");
        fault("url: 'redis://u:hush@x', user: u", "1:41: redis.user: a user stands in the URL too");
        fault("url: 'redis://x', user: u", "1:34: redis.user: a user has a password");
        fault("url: 'redis://u@x'", "1:1: redis: a user has a password");
        fault("url: 'redis://x', user: 'a b', password_file: f", "1:34: redis.user: expected a user's name");
        fault("url: 'redis://x', password_file: ''", "1:43: redis.password_file: expected a file's path");
        let sentinel = |more: &str| format!("sentinel: {{ master: m, urls: 'redis://u:hush@x', {more} }}");
        fault(&sentinel("password_file: f"), "1:74: redis.sentinel.password_file: a password stands");
    }

    #[test]
    fn tls_is_whole() {
        good("url: 'rediss://x', tls: { ca: a, certificate: b, key: c, server_name: redis.mesh }");
        fault("url: 'redis://x', tls: { ca: a }", "1:28: redis.tls: `redis://` is plaintext");
        fault("url: 'rediss://x', tls: { certificate: b }", "1:49: redis.tls.certificate: expected `key`");
        fault("url: 'rediss://x', tls: { key: b }", "1:41: redis.tls.key: expected `certificate`");
        fault("url: 'rediss://x', tls: { ca: '' }", "1:40: redis.tls.ca: expected a file's path");
        fault(
            "url: 'rediss://x', tls: { server_name: 'a:1' }",
            "1:49: redis.tls.server_name: expected a DNS",
        );
    }

    #[test]
    fn numbers_and_names() {
        fault("url: 'redis://x', budget: 0s", "1:36: redis.budget: nothing is done in no time");
        for prefix in ["{a}", "a b", "", "\\t"] {
            fault(
                &format!("url: 'redis://x', prefix: \"{prefix}\""),
                "1:36: redis.prefix: expected 1 to 64 of",
            );
        }
        fault("url: 'redis://x', on_new_state: emty", "1:42: redis.on_new_state: `emty` is not known here");
    }

    #[test]
    fn no_password_is_shown() {
        let text = "redis: { sentinel: { master: m, urls: ['redis://:hush@s1'] }, password_file: f }";
        let model = parse(text, "t").expect("sound");
        assert!(!format!("{model:?}").contains("hush"));
        let shown = serde_json::to_value(&model).expect("JSON");
        assert_eq!(shown["redis"]["sentinel"]["urls"][0], "redis://:***@s1:26379".replace(":26379", ""));
    }
}
