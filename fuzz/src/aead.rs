//! Batches of packets: the vector code against aws-lc-rs.

use warren_aead::{Backend, Key, LANES, Packet, TAG_BYTES};

use crate::input::Input;

/// Packets of the longest batch: more than two groups.
const MOST: usize = 2 * LANES + 3;
/// Longest text.
const LONGEST: usize = 4200;

/// Makes a batch: its key, its counters, the length of each text and what it is filled with. All back ends must make
/// the same bytes of it, and open them, all but those that were changed, of which only zeros may remain.
pub fn batch(data: &[u8]) {
    let mut input = Input::new(data);
    let mut key = [0; 32];
    key.iter_mut().zip(input.bytes()).for_each(|(to, from)| *to = *from);
    let first = u64::from_le_bytes([(); 8].map(|()| input.byte()));
    let count = input.below(MOST + 1);
    let mut length = 0;
    let texts: Vec<Vec<u8>> = (0..count)
        .map(|_| {
            // Most packets of a real batch are as long as the one before.
            let choice = input.byte();
            if choice >= 64 {
                length = (usize::from(choice % 64) << 8 | usize::from(input.byte())) % (LONGEST + 1);
            }
            let pattern = input.bytes();
            let pattern = if pattern.is_empty() { &[0xff][..] } else { pattern };
            pattern.iter().cycle().take(length).copied().collect()
        })
        .collect();

    let keys = [Backend::AwsLc, Backend::Avx2, Backend::Avx512].map(|backend| Key::with_backend(&key, backend));
    let sealed = keys.each_ref().map(|key| {
        let mut buffers: Vec<Vec<u8>> = texts.iter().map(|text| [text.as_slice(), &[0; TAG_BYTES]].concat()).collect();
        let good = with_packets(&mut buffers, first, |packets| key.seal_batch(packets));
        assert!(good.into_iter().all(|good| good));
        buffers
    });
    let [expected, mut sealed, more] = sealed;
    assert!(expected == sealed && expected == more, "all seal alike");

    while !input.is_empty() && count > 0 {
        let packet = &mut sealed[input.below(count)];
        let at = usize::from(u16::from_le_bytes([input.byte(), input.byte()])) % packet.len();
        packet[at] ^= input.byte();
    }
    for key in &keys {
        let mut buffers = sealed.clone();
        let good = with_packets(&mut buffers, first, |packets| key.open_batch(packets));
        for (at, (buffer, good)) in buffers.iter().zip(good).enumerate() {
            assert_eq!(good, sealed[at] == expected[at], "only what nobody changed opens");
            if good {
                assert!(buffer[..texts[at].len()] == texts[at], "what was sealed comes out");
            } else {
                assert!(buffer.iter().all(|byte| *byte == 0), "nothing remains of a refused packet");
            }
        }
    }
}

/// Does something with packets over `buffers`, and returns which are good then.
fn with_packets(buffers: &mut [Vec<u8>], first: u64, act: impl FnOnce(&mut [Packet<'_>])) -> Vec<bool> {
    let numbers = (0..).map(|at| first.wrapping_add(at));
    let mut packets: Vec<_> = buffers.iter_mut().zip(numbers).map(|(buffer, at)| Packet::new(at, buffer)).collect();
    act(&mut packets);
    packets.iter().map(|packet| packet.is_good).collect()
}
