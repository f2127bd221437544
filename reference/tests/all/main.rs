//! Checks the reference by its public functions; one file here for each module.
mod attention;
mod golden;
mod indexer;
mod layer;
mod quant;
mod random;
mod rope;
mod top_k;
