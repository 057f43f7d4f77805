//! Which code does the work.

use std::sync::OnceLock;

use crate::key::LANES;

/// The environment variable that chooses a back end for the whole process: `aws` means aws-lc-rs, `avx2` the vector code
/// for that if the processor has it; every other value, or none, the fastest.
pub const SWITCH: &str = "WARREN_AEAD";

/// A way to seal and open batches. Batches with which vector code would not gain go to aws-lc-rs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Backend {
    /// One packet after another with aws-lc-rs; every machine has it.
    AwsLc,
    /// Up to 8 short packets at once with AVX2 (Intel from Haswell, AMD from Zen).
    Avx2,
    /// Up to 16 packets at once with AVX-512 and its 52-bit multiplication (Intel from Ice Lake, AMD from Zen 4).
    Avx512,
}

impl Backend {
    /// Tells whether this machine can do it.
    #[must_use]
    pub fn is_available(self) -> bool {
        match self {
            Self::AwsLc => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => std::arch::is_x86_feature_detected!("avx2"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                std::arch::is_x86_feature_detected!("avx512f") && std::arch::is_x86_feature_detected!("avx512ifma")
            }
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::Avx512 => false,
        }
    }

    /// Returns the fastest that this machine has, unless [`SWITCH`] says otherwise. Looked up once for the process.
    ///
    /// Cryptography written by hand may do that since it gave the same bytes as aws-lc-rs, and refused the same packets, for
    /// an hour of fuzzing (target `aead_batch`: lengths, batch shapes, damaged packets).
    #[must_use]
    pub fn chosen() -> Self {
        static CHOSEN: OnceLock<Backend> = OnceLock::new();
        *CHOSEN.get_or_init(|| {
            let wish = std::env::var_os(SWITCH).unwrap_or_default();
            let choices: &[Self] = match wish.as_encoded_bytes() {
                b"aws" => &[],
                b"avx2" => &[Self::Avx2],
                _ => &[Self::Avx512, Self::Avx2],
            };
            choices.iter().copied().find(|choice| choice.is_available()).unwrap_or(Self::AwsLc)
        })
    }

    /// Returns how many packets are handled at once.
    pub(crate) const fn lanes(self) -> usize {
        match self {
            Self::AwsLc | Self::Avx512 => LANES,
            Self::Avx2 => LANES / 2,
        }
    }

    /// Returns how many packets gain at least; measured, see `benches/batch.rs`.
    pub(crate) const fn least(self) -> usize {
        match self {
            Self::AwsLc => 0,
            Self::Avx2 | Self::Avx512 => 4,
        }
    }

    /// Returns the longest packet, tag and all, for which it is taken. With AVX2, aws-lc-rs is faster for longer ones
    /// (measured, as before); no datagram is longer than the other limit.
    pub(crate) const fn longest(self) -> usize {
        match self {
            Self::AwsLc | Self::Avx512 => 1 << 16,
            Self::Avx2 => 400,
        }
    }
}
