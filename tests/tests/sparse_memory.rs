//! Memory of the tests: what is huge and zeroed takes no page before it is touched, so that a cache of gigabytes of
//! which a few rows are used costs a few pages on the CPU too. The standard allocator zeroes what is aligned to
//! more than 16 bytes, as CubeCL's buffers are, by writing it.

use std::alloc::{GlobalAlloc, Layout, System};

/// Allocations from this size on come from zeroed pages.
const HUGE: usize = 1 << 30;
/// What the standard allocator asks the system for zeroed pages with.
const PLAIN: usize = 16;

#[global_allocator]
static MEMORY: Memory = Memory;

struct Memory;

/// The allocation of a huge `layout`: room to align it, and before it where it began.
fn around(layout: Layout) -> Option<Layout> {
    let size = layout.size().checked_add(layout.align())?.checked_add(PLAIN)?;
    Layout::from_size_align(size, PLAIN).ok()
}

// SAFETY: small allocations are the system's. A huge one is a part, as large and aligned as was asked for, of one
// of the system's that is larger by its alignment and 16 bytes; where that began stands in the 16 bytes before the
// part, and it is given back with the layout it was made with. Zeroed memory is right where any is.
unsafe impl GlobalAlloc for Memory {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() < HUGE {
            return unsafe { System.alloc(layout) };
        }
        unsafe { self.alloc_zeroed(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if layout.size() < HUGE {
            return unsafe { System.alloc_zeroed(layout) };
        }
        let Some(whole) = around(layout) else { return std::ptr::null_mut() };
        unsafe {
            let start = System.alloc_zeroed(whole);
            if start.is_null() {
                return start;
            }
            let first = start.add(PLAIN);
            let part = first.add(first.align_offset(layout.align()));
            part.sub(PLAIN).cast::<*mut u8>().write(start);
            part
        }
    }

    unsafe fn dealloc(&self, part: *mut u8, layout: Layout) {
        match around(layout).filter(|_| layout.size() >= HUGE) {
            None => unsafe { System.dealloc(part, layout) },
            Some(whole) => unsafe {
                let start = part.sub(PLAIN).cast::<*mut u8>().read();
                System.dealloc(start, whole);
            },
        }
    }

    unsafe fn realloc(&self, part: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if layout.size() < HUGE && size < HUGE {
            return unsafe { System.realloc(part, layout, size) };
        }
        unsafe {
            let other = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
            if !other.is_null() {
                std::ptr::copy_nonoverlapping(part, other, layout.size().min(size));
                self.dealloc(part, layout);
            }
            other
        }
    }
}

#[test]
fn a_huge_buffer_is_zeros_aligned_and_grows() {
    let layout = Layout::from_size_align(HUGE, 64).unwrap();
    // SAFETY: the buffer is read and written within its size, and given back with the layout it has then.
    unsafe {
        let buffer = std::alloc::alloc_zeroed(layout);
        assert!(!buffer.is_null() && buffer.align_offset(64) == 0);
        assert_eq!((*buffer, *buffer.add(HUGE - 1)), (0, 0));
        buffer.write(7);
        std::alloc::dealloc(buffer, layout);
    }
    let mut grown = vec![3u8; 100];
    grown.resize(200, 4);
    assert_eq!((grown[0], grown[199]), (3, 4));
}
