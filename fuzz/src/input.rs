//! Making choices from the bytes of an input.

/// Bytes that are taken from the front; zeros when they are used up.
pub(crate) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub(crate) const fn new(data: &'a [u8]) -> Self {
        Self(data)
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// Returns a number below `limit`.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        usize::from(self.byte()) % limit
    }

    /// Returns one of `choices`.
    pub(crate) fn choose<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// Returns up to 255 bytes behind a byte that says how many.
    pub(crate) fn bytes(&mut self) -> &'a [u8] {
        let length = usize::from(self.byte()).min(self.0.len());
        let (bytes, rest) = self.0.split_at(length);
        self.0 = rest;
        bytes
    }

    pub(crate) const fn rest(self) -> &'a [u8] {
        self.0
    }
}

/// XORs `mask` over `bytes`; what is longer is appended.
pub(crate) fn changed(bytes: &[u8], mask: &[u8]) -> Vec<u8> {
    let over = bytes.iter().zip(mask.iter().chain(std::iter::repeat(&0))).map(|(byte, mask)| byte ^ mask);
    over.chain(mask.iter().skip(bytes.len()).copied()).collect()
}
