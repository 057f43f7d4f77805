//! Which code does the work.

use std::sync::OnceLock;

/// The environment variable that chooses a back end for the whole process: `vectors` turns on vector code of our own
/// where the processor has what it needs; every other value, or none, means aws-lc-rs.
pub const SWITCH: &str = "WARREN_AEAD";

/// A way to seal and open batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Backend {
    /// One packet after another with aws-lc-rs; every machine has it.
    AwsLc,
    /// Up to 16 packets at once with AVX-512 and its 52-bit multiplication (Intel from Ice Lake, AMD from Zen 4).
    /// Batches too small to gain go to aws-lc-rs.
    Avx512,
}

impl Backend {
    /// Tells whether this machine can do it.
    #[must_use]
    pub fn is_available(self) -> bool {
        match self {
            Self::AwsLc => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                std::arch::is_x86_feature_detected!("avx512f") && std::arch::is_x86_feature_detected!("avx512ifma")
            }
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx512 => false,
        }
    }

    /// Returns the one that [`SWITCH`] asks for, if this machine can do it. Looked up once for the process.
    ///
    /// Not the fastest by itself: cryptography written by hand is for those who ask for it until it was fuzzed against
    /// aws-lc-rs for an hour without a difference.
    #[must_use]
    pub fn chosen() -> Self {
        static CHOSEN: OnceLock<Backend> = OnceLock::new();
        *CHOSEN.get_or_init(|| {
            let is_wanted = std::env::var_os(SWITCH).is_some_and(|value| value == "vectors");
            if is_wanted && Self::Avx512.is_available() { Self::Avx512 } else { Self::AwsLc }
        })
    }
}
