//! `/etc/hosts`, which comes before every server, and is followed when it changes.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use hickory_resolver::Hosts;
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::Name;

use super::record::{Family, Outcome};

/// How soon a change is seen.
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
    pub(super) fn look_up(&self, name: &Name, family: Family) -> Option<Outcome> {
        let hosts = self.current()?;
        let addresses = |family| {
            let query = Query::query(name.clone(), Family::record_type(family));
            let lookup = hosts.lookup_static_host(&query)?;
            Some(lookup.answers().iter().filter_map(|record| record.data.ip_addr()).collect())
        };
        if let Some(addresses) = addresses(family) {
            return Some(Outcome::Addresses { addresses, ttl: HOSTS_TTL });
        }
        addresses(family.other())?;
        let why = format!("{} has {name} without such an address", self.path.display()).into();
        Some(Outcome::Denied { ttl: Some(HOSTS_TTL), why })
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
