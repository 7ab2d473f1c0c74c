//! Things that are known by a number to those who may not hold them.

/// Values by number; a number is used again once its value was taken out.
pub(crate) struct Handles<T>(Vec<Option<T>>);

impl<T> Default for Handles<T> {
    fn default() -> Self {
        Handles(Vec::new())
    }
}

impl<T: Clone> Handles<T> {
    /// Keeps a value; gives its number.
    pub(crate) fn keep(&mut self, value: T) -> u64 {
        let place = self.0.iter().position(Option::is_none).unwrap_or_else(|| {
            self.0.push(None);
            self.0.len() - 1
        });
        self.0[place] = Some(value);
        place as u64
    }

    /// The value of a number that was not taken out.
    pub(crate) fn get(&self, id: u64) -> Option<T> {
        self.0.get(usize::try_from(id).ok()?)?.clone()
    }

    /// Takes the value out.
    pub(crate) fn take(&mut self, id: u64) -> Option<T> {
        self.0.get_mut(usize::try_from(id).ok()?)?.take()
    }
}
