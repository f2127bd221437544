//! Checks the reference by its public functions; one file here for each part.
mod attention;
mod checkpoint;
mod experts;
mod golden;
mod indexer;
mod layer;
mod linear;
mod model;
mod official;
mod quant;
mod random;
mod rope;
mod router;
mod splits;
mod top_k;
mod weights;
