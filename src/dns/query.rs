//! Asks for names: which names a search list makes of one, `/etc/hosts` before every server, and
//! what their answers together mean.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::proto::rr::Name;
use tokio::time::timeout;

use super::hosts::HostsFile;
use super::kept::{Bounds, Denial};
use super::record::{Found, Kind, Outcome};
use super::servers::{Known, Manner, Servers};
use super::system::{ConfigError, System};
use crate::config::model;

/// The system's files.
#[derive(Debug, Clone)]
pub(super) struct Files {
    pub(super) resolv_conf: PathBuf,
    pub(super) hosts: PathBuf,
}

impl Default for Files {
    fn default() -> Self {
        Self { resolv_conf: "/etc/resolv.conf".into(), hosts: "/etc/hosts".into() }
    }
}

/// Everything that a query needs to know; replaced as a whole by a reload.
pub(super) struct Asker {
    pub(super) bounds: Arc<Bounds>,
    pub(super) servers: Servers,
    /// For everything that one answer takes.
    pub(super) resolution_timeout: Duration,
    /// The system names no server, and one on this machine stands for it.
    pub(super) is_made_up: bool,
    search: Vec<Name>,
    ndots: usize,
    no_aaaa: bool,
    hosts: HostsFile,
}

/// A name, and the names that the search list makes of it, in the order to be tried.
pub(super) struct Names {
    /// As in the hosts file.
    plain: Option<Name>,
    pub(super) candidates: Vec<Name>,
    /// What to say where it is no DNS name at all.
    malformed: Option<Arc<str>>,
}

impl Asker {
    /// `known` says what is known of a server already.
    pub(super) fn new(
        config: &model::Dns,
        files: &Files,
        known: impl Fn(SocketAddr) -> Arc<Known>,
    ) -> Result<Self, ConfigError> {
        let system = System::read(&files.resolv_conf, config.servers.is_empty())?;
        let addresses = if config.servers.is_empty() { &system.servers } else { &config.servers };
        let manner = Manner {
            // The system's servers are asked as the system says.
            timeout: if config.servers.is_empty() {
                system.timeout.map_or(config.timeout.0, |system| system.min(config.timeout.0))
            } else {
                config.timeout.0
            },
            mixed_case: config.mixed_case,
            tcp: system.tcp,
            rotate: system.rotate,
        };
        // Checked by validation: the domains are names.
        let domain = |text: &str| Name::from_ascii(format!("{}.", text.trim_end_matches('.'))).ok();
        let domains =
            config.domains.iter().filter_map(|(text, servers)| Some((domain(text)?, servers.clone())));
        Ok(Self {
            bounds: Arc::new(Bounds {
                min_ttl: config.min_ttl.0,
                max_ttl: config.max_ttl.0,
                max_negative_ttl: config.max_negative_ttl.0,
                jitter: config.jitter.of_one(),
                stale: config.stale.0,
                recheck: config.recheck.0,
            }),
            servers: Servers::new(addresses, domains, manner, known)?,
            resolution_timeout: config.resolution_timeout.0,
            is_made_up: system.is_made_up && config.servers.is_empty(),
            search: system.search,
            ndots: system.ndots,
            no_aaaa: system.no_aaaa,
            hosts: HostsFile::new(&files.hosts),
        })
    }

    /// The names to try for `name`: by `ndots` and the search list, none of it with a final dot. A
    /// name that already ends in one of the list's domains is tried as it is first, which spares a
    /// cluster's DNS most of the queries that `ndots:5` costs it.
    pub(super) fn names(&self, name: &str) -> Names {
        let plain = match Name::from_ascii(name) {
            Ok(plain) => plain,
            Err(error) => {
                let why = format!("`{name}` is not a DNS name: {error}").into();
                return Names { plain: None, candidates: Vec::new(), malformed: Some(why) };
            }
        };
        let mut complete = plain.clone();
        complete.set_fqdn(true);
        let mut candidates = Vec::new();
        if plain.is_fqdn() {
            candidates.push(complete.clone());
        } else {
            // Labels less one are the dots that `ndots` counts.
            let complete_first = usize::from(plain.num_labels()) > self.ndots
                || complete.is_localhost()
                || self.search.iter().any(|domain| !domain.is_root() && domain.zone_of(&complete));
            let searched = self.search.iter().filter_map(|domain| plain.clone().append_domain(domain).ok());
            candidates.extend(complete_first.then(|| complete.clone()));
            candidates.extend(searched);
            candidates.extend((!complete_first).then(|| complete.clone()));
            let mut seen = Vec::with_capacity(candidates.len());
            candidates.retain(|name| {
                !seen.contains(name) && {
                    seen.push(name.clone());
                    true
                }
            });
        }
        Names { plain: Some(complete), candidates, malformed: None }
    }

    /// Asks for records of a kind: the hosts file, then the anchor alone, or each name of the search
    /// list until one has some. A server that fails one of them does not end the search, as in glibc;
    /// silence does.
    pub(super) async fn resolve(&self, name: &str, anchor: Option<usize>, kind: Kind) -> Found {
        let names = self.names(name);
        if let Some(why) = &names.malformed {
            return nothing(Outcome::Denied { what: Denial::Name, ttl: None, why: why.clone(), sure: true });
        }
        if let Some(outcome) = names.plain.as_ref().and_then(|plain| self.hosts.look_up(plain, kind)) {
            return nothing(outcome);
        }
        if kind == Kind::V6 && self.no_aaaa {
            let why = "`options no-aaaa` of resolv.conf asks for no IPv6 addresses".into();
            return nothing(Outcome::Denied { what: Denial::Data, ttl: None, why, sure: true });
        }
        let limit = self.resolution_timeout;
        let found = timeout(limit, self.search(&names.candidates, anchor, kind)).await;
        found.unwrap_or_else(|_| {
            let record = kind.record_type();
            let why =
                format!("no server has answered within resolution_timeout, {limit:?} ({name} {record})");
            nothing(Outcome::Failed { why: why.into() })
        })
    }

    async fn search(&self, names: &[Name], anchor: Option<usize>, kind: Kind) -> Found {
        let range = anchor.filter(|index| *index < names.len()).map_or(0..names.len(), |i| i..i + 1);
        let mut failed = None;
        let mut denied = None;
        for candidate in range {
            match self.servers.ask(&names[candidate], kind).await {
                Ok(outcome @ Outcome::Found { .. }) => {
                    return Found { outcome, candidate, certain: failed.is_none() };
                }
                // That a name exists says more than that another does not.
                Ok(outcome) if matches!(denied, Some(Outcome::Denied { what: Denial::Data, .. })) => {
                    drop(outcome)
                }
                Ok(outcome) => denied = Some(outcome),
                Err(failure) => {
                    let silent = failure.silent;
                    failed.get_or_insert(failure.why);
                    if silent {
                        break;
                    }
                }
            }
        }
        nothing(match (failed, denied) {
            (Some(why), _) if why.is_empty() => Outcome::Failed { why: "there is no server to ask".into() },
            (Some(why), _) => Outcome::Failed { why: why.into() },
            (None, Some(denied)) => denied,
            (None, None) => Outcome::Failed { why: "there is no server to ask".into() },
        })
    }
}

/// An outcome of no particular candidate.
fn nothing(outcome: Outcome) -> Found {
    Found { outcome, candidate: 0, certain: false }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn asker_with(config: &model::Dns, resolv_conf: &Path) -> Asker {
        let files = Files { resolv_conf: resolv_conf.into(), hosts: "/nonexistent".into() };
        Asker::new(config, &files, |_| Arc::default()).unwrap()
    }

    fn asker(resolv_conf: &str) -> Asker {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, resolv_conf).unwrap();
        asker_with(&model::Dns::default(), file.path())
    }

    fn candidates(asker: &Asker, name: &str) -> Vec<String> {
        asker.names(name).candidates.iter().map(Name::to_ascii).collect()
    }

    fn servers(asker: &Asker) -> Vec<String> {
        asker.servers.snapshot().iter().map(|server| server.address.to_string()).collect()
    }

    #[test]
    fn ndots_and_the_search_list_order_the_names() {
        let asker = asker("nameserver 10.0.0.10\nsearch shop.svc.mesh svc.mesh\noptions ndots:3\n");
        assert_eq!(candidates(&asker, "orders"), ["orders.shop.svc.mesh.", "orders.svc.mesh.", "orders."]);
        assert_eq!(candidates(&asker, "a.b.c.d")[0], "a.b.c.d.");
        assert_eq!(candidates(&asker, "a.b.c")[0], "a.b.c.shop.svc.mesh.");
        assert_eq!(candidates(&asker, "orders."), ["orders."]);
        assert_eq!(candidates(&asker, "localhost")[0], "localhost.");
    }

    #[test]
    fn a_name_within_a_search_domain_is_tried_as_it_is_first() {
        let asker = asker("nameserver 10.0.0.10\nsearch shop.svc.mesh svc.mesh\noptions ndots:5\n");
        let names = candidates(&asker, "orders.shop.svc.mesh");
        assert_eq!((names[0].as_str(), names.len()), ("orders.shop.svc.mesh.", 3));
    }

    #[test]
    fn servers_come_from_the_system_unless_they_are_configured() {
        assert_eq!(
            servers(&asker("nameserver 10.0.0.10\nnameserver fd00::a\n")),
            ["10.0.0.10:53", "[fd00::a]:53"]
        );
        let none = Path::new("/nonexistent");
        let config = model::Dns::default();
        assert_eq!(servers(&asker_with(&config, none)), ["127.0.0.1:53"]);
        let config = model::Dns { servers: vec!["10.0.0.1:5353".parse().unwrap()], ..config };
        assert_eq!(servers(&asker_with(&config, none)), ["10.0.0.1:5353"]);
    }
}
