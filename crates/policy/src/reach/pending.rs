//! Stand-ins until the language part is there.
use crate::Attributes;
use crate::addresses::AddressSet;
use crate::posture::Assertion;
use crate::schedule::Validity;
pub(super) trait Holds<T> {
    fn holds(&self, with: T) -> bool;
}
impl Holds<i64> for Validity {
    fn holds(&self, now: i64) -> bool {
        self.from.is_none_or(|f| f <= now) && self.until.is_none_or(|u| now < u)
    }
}
impl Holds<&Attributes> for Assertion {
    fn holds(&self, _: &Attributes) -> bool {
        false
    }
}
pub(super) trait Has {
    fn contains(&self, a: std::net::IpAddr) -> bool;
}
impl Has for AddressSet {
    fn contains(&self, _: std::net::IpAddr) -> bool {
        false
    }
}
