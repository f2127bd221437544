//! Tensors as a kernel sees them: a buffer, its shape and its strides in elements.

use super::load::Strided;
use cubecl::prelude::*;

/// A tensor of a launch. Shape and strides travel with it as numbers of the launch.
#[derive(CubeType, CubeLaunch)]
pub struct View<T: CubePrimitive> {
    /// The elements, or vectors of them.
    pub data: Box<[T]>,
    shape: Sequence<usize>,
    strides: Sequence<usize>,
}

#[cube]
impl<T: CubePrimitive> View<T> {
    /// Elements along `axis`.
    pub fn shape(&self, #[comptime] axis: i32) -> usize {
        *self.shape.index(comptime![axis as usize])
    }

    /// Elements from one of `axis` to the next.
    pub fn stride(&self, #[comptime] axis: i32) -> usize {
        *self.strides.index(comptime![axis as usize])
    }
}

#[cube]
impl<E: Numeric, N: Size> View<Vector<E, N>> {
    /// The rows along `axis` from the `first` on, `before` elements into the buffer, of `cols` elements each.
    pub fn rows(
        &self,
        #[comptime] axis: i32,
        first: usize,
        before: usize,
        cols: usize,
    ) -> Strided<'_, E, N> {
        let stride = self.stride(axis);
        let (start, count) = (before + first * stride, self.shape(axis) - first);
        Strided::<'_, E, N>::new(&self.data, start, stride, count, cols)
    }
}
