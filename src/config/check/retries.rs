//! When requests are sent again: values that must agree.

use super::{Checker, Place};
use crate::config::model::{Hedge, HedgeAfter, Retries, Route};
use crate::config::units::OneOrMany;

impl Checker<'_, '_> {
    /// What a route says of requests that failed.
    pub(super) fn retries(&mut self, route: &Route, place: &Place<'_>) {
        if let Some(Hedge { after: HedgeAfter::Time(time) }) = route.hedge {
            self.not_zero(&place.key("hedge").key("after"), time);
        }
        let Retries::Rules(rules) = &route.retries else { return };
        let place = place.key("retries");
        let on = place.key("on");
        if on.is_empty_list() {
            self.fault(&on, "an empty list sends nothing again; write `retries: 0`");
        }
        for (i, (failure, place)) in
            rules.on.iter().zip(on.items_of(&OneOrMany::Many(rules.on.clone()))).enumerate()
        {
            if rules.on[..i].contains(failure) {
                self.fault(&place, format!("`{failure}` is in the list already"));
            }
        }
        if let Some(time) = rules.try_timeout {
            self.not_zero(&place.key("try_timeout"), time);
        }
        let backoff = &rules.backoff;
        if backoff.first > backoff.most {
            let place = place.key("backoff");
            let key = if place.key("first").is_written() { "first" } else { "most" };
            let message = format!("`first` ({}) is above `most` ({})", backoff.first, backoff.most);
            self.fault(&place.key(key), message);
        }
    }
}
