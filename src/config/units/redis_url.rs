//! The URL of a Redis.

use std::fmt;
use std::str::FromStr;

/// `redis://[user:password@]host[:port][/db]`, or `rediss://` for TLS. Neither its `Debug` nor its
/// text shows the password.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl {
    /// `rediss://`.
    pub tls: bool,
    /// A name or an address, an IPv6 one without brackets.
    pub host: String,
    /// The port, where one is written; never 0.
    pub port: Option<u16>,
    /// The database, where one is written.
    pub database: Option<u32>,
    /// The user, where one is written.
    pub user: Option<String>,
    /// The password, where one is written.
    pub password: Option<String>,
}

const EXPECTED: &str = "expected `redis://[user:password@]host[:port][/db]`, or `rediss://` for TLS";

impl FromStr for RedisUrl {
    type Err = String;

    /// Errors show nothing of what may be a password.
    fn from_str(text: &str) -> Result<Self, String> {
        let (scheme, rest) =
            text.split_once("://").ok_or_else(|| format!("this is not a URL; {EXPECTED}"))?;
        let tls = match scheme {
            "redis" => false,
            "rediss" => true,
            _ => return Err(format!("the scheme `{scheme}` is not known; {EXPECTED}")),
        };
        // The client is not given TLS: that is ours. A URL is read alike with and without.
        let plain = format!("redis://{rest}");
        let Some(url) = redis::parse_redis_url(&plain) else {
            return Err(format!("the host or the port is none; {EXPECTED}"));
        };
        if url.query().is_some() || url.fragment().is_some() {
            return Err(format!("nothing is read after `?` or `#`; {EXPECTED}"));
        }
        let info = redis::IntoConnectionInfo::into_connection_info(url.clone())
            .map_err(|error| format!("it is not understood: {error}; {EXPECTED}"))?;
        let redis::ConnectionAddr::Tcp(host, _) = info.addr() else {
            return Err(format!("it names no host; {EXPECTED}"));
        };
        if host.is_empty() || url.port() == Some(0) {
            return Err(format!("it names no host and port; {EXPECTED}"));
        }
        let database = match url.path().trim_matches('/') {
            "" => None,
            _ => Some(
                u32::try_from(info.redis_settings().db()).map_err(|_| "the database's number is below 0")?,
            ),
        };
        let owned = |text: Option<&str>| text.filter(|text| !text.is_empty()).map(str::to_owned);
        Ok(Self {
            tls,
            host: host.clone(),
            port: url.port(),
            database,
            user: owned(info.redis_settings().username()),
            password: owned(info.redis_settings().password()),
        })
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.tls { "rediss://" } else { "redis://" })?;
        match (&self.user, &self.password) {
            (None, None) => {}
            (user, Some(_)) => write!(f, "{}:***@", user.as_deref().unwrap_or_default())?,
            (Some(user), None) => write!(f, "{user}@")?,
        }
        match self.host.contains(':') {
            true => write!(f, "[{}]", self.host)?,
            false => f.write_str(&self.host)?,
        }
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        if let Some(database) = self.database {
            write!(f, "/{database}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_and_what_is_shown_of_it() {
        for (text, shown) in [
            ("redis://redis.mesh:6379", "redis://redis.mesh:6379"),
            ("rediss://u:p%40ss@[::1]:6380/2", "rediss://u:***@[::1]:6380/2"),
            ("redis://redis.mesh", "redis://redis.mesh"),
            ("redis://:hush@10.0.0.7/", "redis://:***@10.0.0.7"),
            ("redis://u@h", "redis://u@h"),
        ] {
            let url: RedisUrl = text.parse().unwrap_or_else(|why| panic!("{text}: {why}"));
            assert_eq!((url.to_string(), format!("{url:?}")), (shown.into(), shown.into()));
        }
        let url: RedisUrl = "rediss://u:p%40ss@[::1]:6380/2".parse().expect("a URL");
        assert!(url.tls);
        assert_eq!((url.host.as_str(), url.port, url.database), ("::1", Some(6380), Some(2)));
        assert_eq!((url.user.as_deref(), url.password.as_deref()), (Some("u"), Some("p@ss")));
        assert_eq!("redis://h".parse::<RedisUrl>().map(|url| (url.port, url.database)), Ok((None, None)));
    }

    #[test]
    fn what_is_none_says_so_without_the_password() {
        for (text, why) in [
            ("", "not a URL"),
            ("redis.mesh:6379", "not a URL"),
            ("u:hush@h", "not a URL"),
            ("http://u:hush@redis", "the scheme `http`"),
            ("unix:///x", "the scheme `unix`"),
            ("redis://", "host"),
            ("redis://h:0", "no host and port"),
            ("redis://u:hush@h:port", "the host or the port"),
            ("redis://u:hush@h/x", "not understood"),
            ("redis://h/-1", "below 0"),
            ("rediss://u:hush@h/#insecure", "after `?` or `#`"),
            ("redis://h?protocol=3", "after `?` or `#`"),
        ] {
            let error = text.parse::<RedisUrl>().expect_err(text);
            assert!(error.contains(why) && !error.contains("hush"), "{text}: {error}");
        }
    }
}
