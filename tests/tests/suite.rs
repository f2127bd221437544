//! The one integration-test binary (every binary links LLVM, so there is only one).

mod cheats;
mod cli;
mod cli_of_files;
mod contracts;
mod determinism;
mod edges_attention;
mod edges_attention_values;
mod edges_copy;
mod edges_indexer;
mod edges_quant;
mod edges_top_k;
mod emit;
mod equivalence;
mod equivalence_cache;
mod harness;
mod kept_cases;
mod mutants;
mod offline;
mod properties;
mod refusals;
mod refusals_of_files;
mod refusals_of_numbers;
mod refusals_of_strides;
mod replay;
mod samples;
mod support;
