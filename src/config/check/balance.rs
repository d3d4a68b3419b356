//! Faults in what says how requests are spread over endpoints, and how many the application is given.

use super::{Checker, Place};
use crate::config::model::{Ejection, Model, Queue, Sticky};
use crate::config::syntax;
use crate::config::units::Percent;

impl Checker<'_, '_> {
    /// Zone, endpoints that fail, queues, what keeps requests to one endpoint, and probes.
    pub(super) fn balance(&mut self, model: &Model) {
        let root = self.root.clone();
        if model.zone.as_ref().is_some_and(|zone| zone.trim().is_empty()) {
            self.fault(&root.key("zone"), "nothing stands here; expected a zone's name, as `eu-central-1a`");
        }
        for (name, upstream) in &model.upstreams {
            let place = root.key("upstreams").key(name);
            self.ejection(&place.key("ejection"), &upstream.ejection);
            self.queue(&place.key("queue"), &upstream.queue);
        }
        for (route, place) in model.routes.iter().zip(root.key("routes").items()) {
            if let Some(sticky) = &route.sticky {
                self.sticky(&place.key("sticky"), sticky);
            }
        }
        let probes = root.key("inbound").key("probes");
        for (path, place) in model.inbound.probes.iter().zip(probes.items()) {
            self.require(&place, syntax::path(path));
        }
    }

    fn ejection(&mut self, place: &Place<'_>, ejection: &Ejection) {
        if ejection.ratio == Percent(0) {
            let message = "one error would eject an endpoint; expected `1%` to `100%`, which never does";
            self.fault(&place.key("ratio"), message);
        }
        self.not_zero(&place.key("pause"), ejection.pause);
        if ejection.longest < ejection.pause {
            let key = if place.key("longest").is_written() { "longest" } else { "pause" };
            let message =
                format!("`longest` ({}) is less than `pause` ({})", ejection.longest, ejection.pause);
            self.fault(&place.key(key), message);
        }
    }

    fn queue(&mut self, place: &Place<'_>, queue: &Queue) {
        if queue.requests > 0 && queue.time.0.is_zero() {
            let message = "nobody waits for no time; write `requests: 0` to refuse at once";
            self.fault(&place.key("time"), message);
        }
    }

    fn sticky(&mut self, place: &Place<'_>, sticky: &Sticky) {
        match sticky {
            Sticky::Header(name) => self.require(&place.key("header"), syntax::field(name)),
            Sticky::Cookie(name) => self.require(&place.key("cookie"), syntax::cookie(name)),
        }
    }
}
