//! What the system says of names: `/etc/resolv.conf`, its servers, search list and options.
//!
//! As resolv.conf(5) has it, a missing file, or one without a server, means a server on this machine.
//! What cannot be read as a line of it is said in the log and passed over, as by every resolver.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hickory_resolver::net::NetError;
use hickory_resolver::proto::rr::Name;
use resolv_conf::{Config, ScopedIp};

const PORT: u16 = 53;

/// What stands for a timeout that was not written, in seconds.
const UNSAID: u32 = 5;

/// The search list and the servers cannot be known.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// `/etc/resolv.conf` exists, but cannot be read.
    #[error("cannot read {path}: {source}; name the servers in `dns.servers`, or make it readable")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A resolver for a server could not be made.
    #[error("cannot ask DNS server {server}: {source}")]
    Server {
        /// The server.
        server: SocketAddr,
        /// Why.
        source: NetError,
    },
}

/// The system's configuration.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct System {
    pub(super) servers: Vec<SocketAddr>,
    pub(super) search: Vec<Name>,
    /// Dots from which on a name is tried as it is first.
    pub(super) ndots: usize,
    /// How long one query may take, where it says so.
    pub(super) timeout: Option<Duration>,
    /// It names no server, so that one on this machine stands for it.
    pub(super) is_made_up: bool,
    /// The servers take turns.
    pub(super) rotate: bool,
    /// Queries go over TCP.
    pub(super) tcp: bool,
    /// Nobody is asked for IPv6 addresses.
    pub(super) no_aaaa: bool,
}

impl System {
    /// Reads the file. Without need of its servers, one that cannot be read is an empty one.
    pub(super) fn read(path: &Path, servers_needed: bool) -> Result<Self, ConfigError> {
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(error) if !servers_needed || error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(source) => return Err(ConfigError::Unreadable { path: path.to_owned(), source }),
        };
        let (config, errors) = Config::parse_with_errors(&text);
        for error in errors {
            tracing::warn!(path = %path.display(), %error, "passed over");
        }
        Ok(Self::new(&config, path))
    }

    fn new(config: &Config, path: &Path) -> Self {
        let mut servers: Vec<SocketAddr> =
            config.nameservers.iter().filter_map(|server| usable(server, path)).collect();
        let is_made_up = servers.is_empty();
        if is_made_up {
            servers.push((Ipv4Addr::LOCALHOST, PORT).into());
        }
        let domain = |text: &String| {
            let name = Name::from_ascii(text).map(|mut name| {
                name.set_fqdn(true);
                name
            });
            let wrong = |error| tracing::warn!(path = %path.display(), domain = %text, %error, "passed over");
            name.map_err(wrong).ok()
        };
        Self {
            servers,
            search: config.get_last_search_or_domain().filter_map(domain).collect(),
            ndots: config.ndots as usize,
            timeout: (config.timeout != UNSAID).then(|| Duration::from_secs(config.timeout.max(1).into())),
            is_made_up,
            rotate: config.rotate,
            tcp: config.use_vc,
            no_aaaa: config.no_aaaa,
        }
    }
}

/// A server's address, unless it has a meaning on one of this machine's links alone.
fn usable(server: &ScopedIp, path: &Path) -> Option<SocketAddr> {
    match server {
        ScopedIp::V6(_, Some(_)) => {
            tracing::warn!(path = %path.display(), %server, "passed over: servers of one link are not asked");
            None
        }
        ScopedIp::V6(address, None) => Some((IpAddr::V6(*address), PORT).into()),
        ScopedIp::V4(address) => Some((IpAddr::V4(*address), PORT).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> System {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, text).unwrap();
        System::read(file.path(), true).unwrap()
    }

    #[test]
    fn servers_search_list_and_options_are_read() {
        let system = read(
            "nameserver 10.0.0.10\nnameserver fd00::a\nnameserver fe80::1%eth0\nsearch shop.svc.mesh svc.mesh.\n\
             options ndots:5 timeout:1 rotate use-vc no-aaaa edns0\n",
        );
        let servers: Vec<String> = system.servers.iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["10.0.0.10:53", "[fd00::a]:53"]);
        let search: Vec<String> = system.search.iter().map(Name::to_ascii).collect();
        assert_eq!(search, ["shop.svc.mesh.", "svc.mesh."]);
        assert_eq!((system.ndots, system.timeout), (5, Some(Duration::from_secs(1))));
        assert!(system.rotate && system.tcp && system.no_aaaa);
    }

    #[test]
    fn without_a_server_it_is_this_machine() {
        let system = read("search shop.mesh\n");
        assert_eq!((system.servers, system.search.len()), (vec!["127.0.0.1:53".parse().unwrap()], 1));
        let missing = System::read(Path::new("/nonexistent"), true).unwrap();
        assert_eq!(
            (missing.servers, missing.ndots, missing.timeout),
            (vec!["127.0.0.1:53".parse().unwrap()], 1, None)
        );
        assert!(!missing.rotate && !missing.tcp && !missing.no_aaaa);
    }

    #[test]
    fn lines_that_make_no_sense_are_passed_over() {
        let long = "x".repeat(64);
        let system = read(&format!("nameserver nowhere\n\0\u{1}\nsearch {long} mesh\nnameserver 10.0.0.1\n"));
        assert_eq!(system.servers, ["10.0.0.1:53".parse().unwrap()]);
        assert_eq!(system.search.len(), 1);
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let error = System::read(directory.path(), true).unwrap_err();
        assert!(error.to_string().contains(&directory.path().display().to_string()), "{error}");
        assert!(System::read(directory.path(), false).is_ok(), "it is not needed then");
    }
}
