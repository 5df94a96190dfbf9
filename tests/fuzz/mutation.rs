//! Small changes of known inputs, from a seed: bits, numbers, cuts, repetitions, and pieces of other inputs.

/// No input grows beyond this.
const MAX_BYTES: usize = 64 << 10;

/// What parsers stumble over.
const TOKENS: [&[u8]; 16] = [
    b"\0",
    b"\n",
    b"/",
    b"..",
    b"../",
    b"\"",
    b"}",
    b"[",
    b",",
    b"-1",
    b"0",
    b"18446744073709551616",
    b"4294967295",
    b"\xff\xff\xff\xff",
    b"\x80\0\0\0",
    b"\\u0000",
];

pub(crate) struct Mutator {
    state: u64,
}

impl Mutator {
    pub(crate) fn new(seed: u64) -> Self {
        Self { state: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1 }
    }

    /// An input with one to six changes.
    pub(crate) fn mutate(&mut self, corpus: &[Vec<u8>]) -> Vec<u8> {
        let mut input = corpus[self.below(corpus.len())].clone();
        for _ in 0..=self.below(6) {
            self.change(&mut input, corpus);
        }
        input.truncate(MAX_BYTES);
        input
    }

    fn change(&mut self, input: &mut Vec<u8>, corpus: &[Vec<u8>]) {
        let at = self.below(input.len() + 1);
        let scale = self.below(10);
        let length = 1 + self.below(1 << scale);
        let end = (at + length).min(input.len());
        match self.below(9) {
            0 if at < input.len() => input[at] ^= 1 << self.below(8),
            1 if at < input.len() => input[at] = self.byte(),
            2 if at < input.len() => input[at] = input[at].wrapping_add(1 + self.byte() % 8).wrapping_sub(4),
            3 => drop(input.drain(at..end)),
            4 => input.truncate(at),
            5 => {
                let repeated = input[at..end].to_vec();
                input.splice(at..at, repeated);
            }
            6 => {
                let token = TOKENS[self.below(TOKENS.len())];
                let replaced = if self.below(2) == 0 { at } else { (at + token.len()).min(input.len()) };
                input.splice(at..replaced, token.iter().copied());
            }
            7 => {
                let other = &corpus[self.below(corpus.len())];
                let from = self.below(other.len() + 1);
                let piece = &other[from..(from + length).min(other.len())];
                input.splice(at..end, piece.iter().copied());
            }
            _ => {
                let noise: Vec<u8> = (0..length.min(16)).map(|_| self.byte()).collect();
                input.splice(at..end.min(at + noise.len()), noise);
            }
        }
    }

    fn byte(&mut self) -> u8 {
        self.next() as u8
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    /// xorshift64*
    fn next(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11
    }
}
