//! The records that later ops cover, in memory of a fixed size: open
//! addressing with linear probing. A place holds the upper 127 bits of a key's
//! hash and, as its lowest bit, whether a cover of all readers is among those
//! seen. An empty place is 0: a key of that hash is just never found.

use super::Reach;

const PLACE_BYTES: usize = size_of::<u128>();
const LEAST_PLACES: usize = 8;
const FOR_ALL: u128 = 1;

pub(super) struct Covers {
    places: Vec<u128>,
    free: usize,
    unremembered: u64,
    /// What was changed since the last [`Covers::keep`]: the place, and what was there.
    journal: Vec<(usize, u128)>,
}

impl Covers {
    /// How many keys so many bytes hold: seven places in eight, beyond which
    /// searches get long.
    pub(super) fn room(bytes: usize) -> usize {
        let places = places(bytes);
        places - places / 8
    }

    pub(super) fn new(bytes: usize) -> Self {
        // Zeroed by the system, page by page as it is used.
        let free = Self::room(bytes);
        Self { places: vec![0; places(bytes)], free, unremembered: 0, journal: Vec::new() }
    }

    /// Whether a later op covers a record for the readers of an op of `reach`.
    pub(super) fn has(&self, key: u128, reach: Reach) -> bool {
        let found = self.places[self.place(key)];
        found != 0 && (reach == Reach::Few || found & FOR_ALL != 0)
    }

    /// A record is covered, for the readers of an op of `reach`.
    pub(super) fn add(&mut self, key: u128, reach: Reach) {
        let place = self.place(key);
        if self.places[place] == 0 {
            if self.free == 0 {
                self.unremembered += 1;
                return;
            }
            self.free -= 1;
        }
        let before = self.places[place];
        self.places[place] |= key & !FOR_ALL | if reach == Reach::All { FOR_ALL } else { 0 };
        if self.places[place] != before {
            self.journal.push((place, before));
        }
    }

    /// What was changed since the last [`Covers::keep`], for [`Covers::recall`].
    pub(super) fn fresh(&self) -> impl Iterator<Item = u128> {
        self.journal.iter().map(|(place, _)| self.places[*place])
    }

    /// A cover as [`Covers::fresh`] gave it.
    pub(super) fn recall(&mut self, cover: u128) {
        self.add(cover, if cover & FOR_ALL == 0 { Reach::Few } else { Reach::All });
    }

    /// What was changed stays.
    pub(super) fn keep(&mut self) {
        self.journal.clear();
    }

    /// Back to how it was at the last [`Covers::keep`].
    pub(super) fn undo(&mut self) {
        while let Some((place, before)) = self.journal.pop() {
            self.places[place] = before;
            self.free += usize::from(before == 0);
        }
    }

    pub(super) fn unremembered(&self) -> u64 {
        self.unremembered
    }

    /// Where a key is, or where it would go. Ends, as an eighth stays empty.
    fn place(&self, key: u128) -> usize {
        // The upper half picks the place, the lower one the pass.
        let mut at = (((key >> 64) * self.places.len() as u128) >> 64) as usize;
        while self.places[at] != 0 && (self.places[at] ^ key) & !FOR_ALL != 0 {
            at = if at + 1 == self.places.len() { 0 } else { at + 1 };
        }
        at
    }
}

fn places(bytes: usize) -> usize {
    (bytes / PLACE_BYTES).max(LEAST_PLACES)
}
