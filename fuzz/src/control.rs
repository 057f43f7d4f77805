//! JSON documents of the control protocol. Whatever is read must be the same after writing and reading it again.

use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;
use warren_wire::control as c;

use crate::input::Input;

/// A registration or its answer.
pub fn register(data: &[u8]) {
    let mut input = Input::new(data);
    match input.byte() % 2 {
        0 => document::<c::RegisterRequest>(input.rest()),
        _ => document::<c::RegisterResponse>(input.rest()),
    }
}

/// A request for maps or a map.
pub fn map(data: &[u8]) {
    let mut input = Input::new(data);
    match input.byte() % 2 {
        0 => document::<c::MapRequest>(input.rest()),
        _ => document::<c::MapResponse>(input.rest()),
    }
}

/// Any of the other calls.
pub fn calls(data: &[u8]) {
    let kinds: [fn(&[u8]); 25] = [
        document::<c::ServerKeys>,
        document::<c::PingRequest>,
        document::<c::PingResponse>,
        document::<c::SetDnsRequest>,
        document::<c::HealthChangeRequest>,
        document::<c::QueryFeatureRequest>,
        document::<c::QueryFeatureResponse>,
        document::<c::RelayAdmitRequest>,
        document::<c::RelayAdmitResponse>,
        document::<c::SetDeviceAttributesRequest>,
        document::<c::SshEventNotifyRequest>,
        document::<c::TokenRequest>,
        document::<c::TokenResponse>,
        document::<c::AuditLogRequest>,
        document::<c::WebClientAuthResponse>,
        document::<c::SshAction>,
        document::<c::SshPolicy>,
        document::<c::TkaRequest>,
        document::<c::TkaBootstrapResponse>,
        document::<c::TkaInitBeginResponse>,
        document::<c::TkaSyncOfferResponse>,
        document::<c::TkaSyncSendResponse>,
        document::<c::DerpMap>,
        document::<c::LogKeyRequest>,
        document::<c::LogKeyResponse>,
    ];
    let mut input = Input::new(data);
    input.choose(&kinds)(input.rest());
}

fn document<T: Serialize + DeserializeOwned + PartialEq + Debug>(json: &[u8]) {
    let Ok(value) = c::from_json::<T>(json) else { return };
    let written = c::to_json(&value).expect("a value that was read can be written");
    let again = c::from_json::<T>(&written).expect("what was written can be read");
    assert!(again == value, "{}\nwas {value:?}\nis  {again:?}", String::from_utf8_lossy(&written));
}
