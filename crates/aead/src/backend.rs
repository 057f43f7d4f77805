//! Which code does the work.

use std::sync::OnceLock;

/// The environment variable that chooses a back end for the whole process: `aws` means aws-lc-rs; every other value, or
/// none, the vector code of our own where the processor has what it needs.
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

    /// Returns the fastest that this machine has, unless [`SWITCH`] says otherwise. Looked up once for the process.
    ///
    /// Cryptography written by hand may do that since it gave the same bytes as aws-lc-rs, and refused the same packets, for
    /// an hour of fuzzing (target `aead_batch`: lengths, batch shapes, damaged packets).
    #[must_use]
    pub fn chosen() -> Self {
        static CHOSEN: OnceLock<Backend> = OnceLock::new();
        *CHOSEN.get_or_init(|| {
            let is_refused = std::env::var_os(SWITCH).is_some_and(|value| value == "aws");
            if !is_refused && Self::Avx512.is_available() { Self::Avx512 } else { Self::AwsLc }
        })
    }
}
