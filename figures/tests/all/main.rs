//! The crate and its program under everything that happens to files and processes.

mod disk;
mod draw;
mod kill;
mod program;
mod rows;
