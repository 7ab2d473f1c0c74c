//! A plain row-major array: the data structure of truths.

/// An n-dimensional array without strides, views or surprises.
#[derive(Clone, Debug, PartialEq)]
pub struct Array<S> {
    /// The size of each dimension.
    pub shape: Vec<usize>,
    /// The elements in row-major order.
    pub data: Vec<S>,
}

impl<S: Copy> Array<S> {
    /// An array of the given elements.
    ///
    /// # Panics
    /// When there are not as many as `shape` says.
    pub fn new(shape: &[usize], data: Vec<S>) -> Self {
        assert_eq!(shape.iter().product::<usize>(), data.len(), "an array of shape {shape:?}");
        Array { shape: shape.to_vec(), data }
    }

    /// The array whose element at `index` is `f(index)`, called in row-major order.
    pub fn from_fn(shape: &[usize], mut f: impl FnMut(&[usize]) -> S) -> Self {
        let mut index = vec![0; shape.len()];
        let mut data = Vec::with_capacity(shape.iter().product());
        for _ in 0..shape.iter().product() {
            data.push(f(&index));
            for d in (0..shape.len()).rev() {
                index[d] += 1;
                if index[d] < shape[d] {
                    break;
                }
                index[d] = 0;
            }
        }
        Array { shape: shape.to_vec(), data }
    }

    /// The element at `index`.
    ///
    /// # Panics
    /// When there is none.
    pub fn at(&self, index: &[usize]) -> S {
        self.data[self.position(index)]
    }

    /// Changes the element at `index`.
    ///
    /// # Panics
    /// When there is none.
    pub fn set(&mut self, index: &[usize], value: S) {
        let at = self.position(index);
        self.data[at] = value;
    }

    fn position(&self, index: &[usize]) -> usize {
        assert_eq!(index.len(), self.shape.len(), "an index into shape {:?}", self.shape);
        index.iter().zip(&self.shape).fold(0, |at, (&i, &d)| {
            assert!(i < d, "index {index:?} into shape {:?}", self.shape);
            at * d + i
        })
    }

    /// The element at `index` of this array broadcast by NumPy's rule: leading dimensions of `index` that the array
    /// lacks are dropped, its dimensions of size 1 repeat.
    pub fn at_broadcast(&self, index: &[usize]) -> S {
        let index = &index[index.len() - self.shape.len()..];
        let inner: Vec<usize> = index.iter().zip(&self.shape).map(|(&i, &d)| if d == 1 { 0 } else { i }).collect();
        self.at(&inner)
    }

    /// The slices along the last dimension.
    pub fn rows(&self) -> impl Iterator<Item = &[S]> {
        self.data.chunks_exact(self.shape.last().copied().unwrap_or(1).max(1))
    }

    /// `f` of every element.
    pub fn map<T: Copy>(&self, f: impl FnMut(S) -> T) -> Array<T> {
        Array { shape: self.shape.clone(), data: self.data.iter().copied().map(f).collect() }
    }
}
