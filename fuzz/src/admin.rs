//! What administrators ask the server.

use warren_control::admin_socket::AdminRequest;

/// Reads `data` as a call; what is read must round-trip.
pub fn request(data: &[u8]) {
    let Ok(request) = serde_json::from_slice::<AdminRequest>(data) else { return };
    let written = serde_json::to_vec(&request).expect("a call can be written");
    assert_eq!(serde_json::from_slice::<AdminRequest>(&written).expect("what was written can be read"), request);
}
