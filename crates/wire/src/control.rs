//! JSON documents of the control protocol: lenient in, strict out.
//!
//! [`from_json`] matches names without regard to ASCII case, reads `null` as absent and ignores unknown names, since
//! the Go clients and tailscale-rs spell and fill things differently. [`to_json`] writes Go's spelling, leaves out what
//! Go leaves out, and never writes a `null` container. Where "empty" says something else than "absent" the field is an
//! `Option` of a list. Source: Tailscale `tailcfg`.

mod calls;
mod derp_map;
mod dns;
mod filter;
mod flow_log;
mod hostinfo;
mod ids;
mod json;
mod lenient;
mod lock;
mod map;
mod node;
mod proof;
mod register;
mod ssh;
mod time;

pub use calls::{
    AuditLogRequest, HealthChangeRequest, PingRequest, PingResponse, QueryFeatureRequest, QueryFeatureResponse,
    RelayAdmitRequest, RelayAdmitResponse, RelayReviewRequest, RelayReviewResponse, ServerKeys,
    SetDeviceAttributesRequest, SetDnsRequest, SshEventNotifyRequest, SshRecordingAttempt, TokenRequest, TokenResponse,
    WebClientAuthResponse,
};
pub use derp_map::{DerpHomeParams, DerpMap, DerpNode, DerpRegion};
pub use dns::{DnsConfig, DnsRecord, Resolver};
pub use filter::{CapGrant, FilterRule, NetPortRange, PortRange, RULES_END};
pub use flow_log::{LOG_KEY_PATH, LogKeyBinding, LogKeyRequest, LogKeyResponse};
pub use hostinfo::{Hostinfo, Location, NetInfo, Service, TpmInfo};
pub use ids::{Blob, CapMap, CapabilityVersion, EndpointType, NodeId, RegionId, UserId};
pub use json::{DOCUMENT_MAX_BYTES, DOCUMENT_MAX_DEPTH, JsonError, RawJson, from_json, from_json_up_to, to_json};
pub use lock::{
    TkaBootstrapResponse, TkaInitBeginResponse, TkaRequest, TkaSignInfo, TkaSignaturesUsingKeyResponse,
    TkaSyncOfferResponse, TkaSyncSendResponse,
};
pub use map::{
    ClientVersion, ControlDialPlan, ControlIpCandidate, Debug, DisplayMessage, DisplayMessageAction, ExpiryChange,
    MapRequest, MapRequestKind, MapResponse, PeerChange, TkaInfo,
};
pub use node::Node;
pub use proof::{
    MACHINE_PROOF, PROOF_CERTIFICATES_MAX, PROOF_CERTIFICATES_MAX_BYTES, ProofBinding, split_certificates,
};
pub use register::{Login, RegisterAuth, RegisterRequest, RegisterResponse, User, UserProfile};
pub use ssh::{SshAction, SshPolicy, SshPrincipal, SshRecorderFailureAction, SshRule};
pub use time::{GO_ZERO, Time, TimeError};

#[cfg(test)]
mod tests;
