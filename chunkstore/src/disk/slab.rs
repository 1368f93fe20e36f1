//! A table whose keys are never valid again after their entry is gone.

/// Entries by key; the key's upper half counts the uses of its place.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    places: Vec<(u32, Option<T>)>,
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self {
            places: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T> Slab<T> {
    pub(crate) fn insert(&mut self, value: T) -> u64 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push((0, None));
            u32::try_from(self.places.len() - 1).expect("admission bounds requests far below 2^32")
        });
        let place = &mut self.places[index as usize];
        place.0 = place.0.wrapping_add(1);
        assert!(place.1.is_none(), "place {index} is taken");
        place.1 = Some(value);
        u64::from(place.0) << 32 | u64::from(index)
    }

    fn place(&self, key: u64) -> Option<usize> {
        let index = usize::try_from(key & u64::from(u32::MAX)).ok()?;
        let (uses, _) = self.places.get(index)?;
        (u64::from(*uses) == key >> 32).then_some(index)
    }

    pub(crate) fn get(&self, key: u64) -> Option<&T> {
        self.places[self.place(key)?].1.as_ref()
    }

    pub(crate) fn get_mut(&mut self, key: u64) -> Option<&mut T> {
        let index = self.place(key)?;
        self.places[index].1.as_mut()
    }

    pub(crate) fn remove(&mut self, key: u64) -> Option<T> {
        let index = self.place(key)?;
        let value = self.places[index].1.take()?;
        self.free
            .push(u32::try_from(index).expect("index of an entry"));
        Some(value)
    }

    /// Takes the entry out for a while; its key stays valid for [`Slab::give_back`] or
    /// [`Slab::retire`], and nobody else finds it meanwhile.
    pub(crate) fn lend(&mut self, key: u64) -> Option<T> {
        let index = self.place(key)?;
        self.places[index].1.take()
    }

    /// Puts a lent entry back.
    pub(crate) fn give_back(&mut self, key: u64, value: T) {
        let index = self.place(key).expect("lent before");
        assert!(self.places[index].1.is_none(), "entry {key} was not lent");
        self.places[index].1 = Some(value);
    }

    /// The lent entry will not come back.
    pub(crate) fn retire(&mut self, key: u64) {
        let index = self.place(key).expect("lent before");
        assert!(self.places[index].1.is_none(), "entry {key} was not lent");
        // The next use of the place gets another key; until then this one finds nothing.
        self.free
            .push(u32::try_from(index).expect("index of an entry"));
    }

    pub(crate) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = u64> + '_ {
        (0u64..)
            .zip(&self.places)
            .filter(|(_, (_, value))| value.is_some())
            .map(|(index, (uses, _))| u64::from(*uses) << 32 | index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_keys_are_dead() {
        let mut slab = Slab::default();
        let first = slab.insert('a');
        assert_eq!(slab.remove(first), Some('a'));
        let second = slab.insert('b');
        assert_ne!(first, second);
        assert_eq!(slab.get(first), None);
        assert_eq!(slab.remove(first), None);
        assert_eq!((slab.get(second), slab.len()), (Some(&'b'), 1));
        assert_eq!(slab.keys().collect::<Vec<_>>(), [second]);
    }
}
