//! Memory of the tests: what is huge takes no page before it is touched, zeroed or not, so that a cache of gigabytes of
//! which a few rows are used costs a few pages on the CPU too. The standard allocator zeroes what is aligned to
//! more than 16 bytes, as CubeCL's buffers are, by writing it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

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

/// How many of a buffer's pages are in memory, as the kernel's table of this process's pages says.
fn pages_in_memory(buffer: *const u8, bytes: usize) -> usize {
    const PAGE: usize = 4096;
    const ENTRY: usize = 8;
    let mut table = File::open("/proc/self/pagemap").unwrap();
    table.seek(SeekFrom::Start((buffer.addr() / PAGE * ENTRY) as u64)).unwrap();
    let mut entries = vec![0; bytes / PAGE * ENTRY];
    table.read_exact(&mut entries).unwrap();
    entries.chunks_exact(ENTRY).filter(|entry| entry[ENTRY - 1] & 0x80 != 0).count()
}

#[test]
fn a_huge_buffer_is_zeros_aligned_and_takes_only_pages_that_are_touched() {
    let layout = Layout::from_size_align(HUGE, 64).unwrap();
    // SAFETY: the buffer is read and written within its size, and given back with the layout it has then.
    unsafe {
        let buffer = std::alloc::alloc_zeroed(layout);
        assert!(!buffer.is_null() && buffer.align_offset(64) == 0);
        assert_eq!((*buffer, *buffer.add(HUGE - 1)), (0, 0));
        buffer.write(7);
        // Where the system has larger pages, one that is touched counts as 512.
        let touched = pages_in_memory(buffer, HUGE);
        assert!((1..=2048).contains(&touched), "{touched} pages");
        std::alloc::dealloc(buffer, layout);
    }
}

#[test]
fn a_buffer_keeps_its_bytes_where_it_becomes_huge_or_is_no_longer() {
    let layout = |size| Layout::from_size_align(size, 64).unwrap();
    // SAFETY: as above; a buffer that moved is used at its new place only.
    unsafe {
        let small = std::alloc::alloc(layout(100));
        small.write_bytes(3, 100);
        let huge = std::alloc::realloc(small, layout(100), HUGE);
        assert!(!huge.is_null() && huge.align_offset(64) == 0);
        let bytes = std::slice::from_raw_parts(huge, 101);
        assert!(bytes[..100].iter().all(|byte| *byte == 3) && bytes[100] == 0);
        let small = std::alloc::realloc(huge, layout(HUGE), 50);
        assert!(!small.is_null() && small.align_offset(64) == 0);
        assert_eq!(std::slice::from_raw_parts(small, 50), [3; 50]);
        std::alloc::dealloc(small, layout(50));
    }
}
