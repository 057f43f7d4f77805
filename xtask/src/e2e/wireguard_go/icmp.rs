//! Pings, as bytes of IPv4 packets.

/// Bytes of both headers.
const HEADERS: usize = 28;
const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST: u8 = 8;
/// Marks our own pings.
const IDENTIFIER: u16 = 0x7761;

fn checksum(bytes: &[u8]) -> [u8; 2] {
    let mut sum: u32 =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!u16::try_from(sum).unwrap_or_default()).to_be_bytes()
}

fn packet(from: [u8; 4], to: [u8; 4], kind: u8, sequence: u16, payload: &[u8]) -> Vec<u8> {
    let mut icmp = vec![kind, 0, 0, 0];
    icmp.extend_from_slice(&IDENTIFIER.to_be_bytes());
    icmp.extend_from_slice(&sequence.to_be_bytes());
    icmp.extend_from_slice(payload);
    let sum = checksum(&icmp);
    icmp[2..4].copy_from_slice(&sum);
    let length = u16::try_from(20 + icmp.len()).expect("pings here have at most 1,400 bytes").to_be_bytes();
    let mut ip = vec![0x45, 0, length[0], length[1], 0, 0, 0, 0, 64, 1, 0, 0];
    ip.extend_from_slice(&from);
    ip.extend_from_slice(&to);
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum);
    ip.extend_from_slice(&icmp);
    ip
}

/// Makes a ping; its size depends on its number, so that all paddings occur.
pub(super) fn request(from: [u8; 4], to: [u8; 4], sequence: u16) -> Vec<u8> {
    let payload: Vec<u8> = (0..sequence % 1300).map(|at| u8::try_from(at % 251).unwrap_or_default()).collect();
    packet(from, to, ECHO_REQUEST, sequence, &payload)
}

/// Makes an answer that nobody asked for: data to which a host says nothing.
pub(super) fn stray_reply(from: [u8; 4], to: [u8; 4]) -> Vec<u8> {
    packet(from, to, ECHO_REPLY, 1, b"unasked")
}

/// What a packet from the tunnel is.
pub(super) enum Ping {
    /// A ping to us, with the whole answer.
    Request(Vec<u8>),
    /// The answer to our ping of this number.
    Reply(u16),
}

/// Reads a packet with its padding; `None` if it is no ping, or damaged.
pub(super) fn read(padded: &[u8], us: [u8; 4]) -> Option<Ping> {
    let length = usize::from(u16::from_be_bytes(*padded.get(2..)?.first_chunk()?));
    let packet =
        padded.get(..length).filter(|packet| packet.len() >= HEADERS && packet[0] == 0x45 && packet[9] == 1)?;
    if packet[16..20] != us || checksum(&packet[..20]) != [0, 0] || checksum(&packet[20..]) != [0, 0] {
        return None;
    }
    let sequence = u16::from_be_bytes([packet[26], packet[27]]);
    match packet[20] {
        ECHO_REQUEST => {
            let mut answer = packet.to_vec();
            answer.copy_within(12..16, 16);
            answer[12..16].copy_from_slice(&us);
            answer[20] = ECHO_REPLY;
            answer[22..24].fill(0);
            let sum = checksum(&answer[20..]);
            answer[22..24].copy_from_slice(&sum);
            Some(Ping::Request(answer))
        }
        ECHO_REPLY if packet[24..26] == IDENTIFIER.to_be_bytes() => Some(Ping::Reply(sequence)),
        _ => None,
    }
}
