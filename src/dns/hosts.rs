//! `/etc/hosts`, which comes before every server, and is followed when it changes.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use hickory_resolver::Hosts;
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::Name;

use super::kept::Denial;
use super::record::{Datum, Kind, Outcome};

/// How long what it says is kept: a change is seen before.
const HOSTS_TTL: Duration = Duration::from_secs(5);

/// The hosts file, read again when it has changed.
pub(super) struct HostsFile {
    path: PathBuf,
    read: Mutex<Option<(Stamp, Arc<Hosts>)>>,
}

/// What tells one version of a file from the next.
type Stamp = (Option<SystemTime>, u64);

impl HostsFile {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), read: Mutex::default() }
    }

    /// What the file says. A name that it has in one family is complete: nobody is asked for the
    /// other.
    pub(super) fn look_up(&self, name: &Name, kind: Kind) -> Option<Outcome> {
        let other = kind.other()?;
        let hosts = self.current()?;
        let addresses = |kind: Kind| -> Option<Vec<Datum>> {
            let lookup = hosts.lookup_static_host(&Query::query(name.clone(), kind.record_type()))?;
            let addresses = lookup.answers().iter().filter_map(|record| record.data.ip_addr());
            Some(addresses.map(Datum::Address).collect())
        };
        if let Some(records) = addresses(kind) {
            return Some(Outcome::Found { records, ttl: HOSTS_TTL });
        }
        addresses(other)?;
        let why = format!("{} has {name} without such an address", self.path.display()).into();
        Some(Outcome::Denied { what: Denial::Data, ttl: Some(HOSTS_TTL), why, sure: true })
    }

    fn current(&self) -> Option<Arc<Hosts>> {
        let file = File::open(&self.path).ok()?;
        let metadata = file.metadata().ok()?;
        let stamp = (metadata.modified().ok(), metadata.len());
        let mut read = self.read.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some((known, hosts)) = &*read
            && *known == stamp
        {
            return Some(hosts.clone());
        }
        let mut hosts = Hosts::default();
        hosts.read_hosts_conf(file).ok()?;
        let hosts = Arc::new(hosts);
        *read = Some((stamp, hosts.clone()));
        Some(hosts)
    }
}
