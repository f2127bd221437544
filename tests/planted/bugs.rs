// The planted bugs: mistakes that people make in these kernels, each of which the gate of one kernel must kill.
//
// | part | says |
// |---|---|
// | name | what is wrong |
// | gate | the kernel whose gate must fall, or `layer`: what `dsa verify` compares, or `model`: the golden model glm |
// | file | where it is planted |
// | right | a text that is there once: an expression, or statements if it ends with a semicolon |
// | wrong | what stands in its place |
//
// The build script writes `if planted { wrong } else { right }`, so that one build holds all of them.

/// One bug.
#[derive(Clone, Copy, Debug)]
pub struct Bug {
    /// What is wrong.
    pub name: &'static str,
    /// The kernel whose gate must fall; `layer` or `model`.
    pub gate: &'static str,
    /// The file, from the root of the repository.
    pub file: &'static str,
    /// The text there.
    pub right: &'static str,
    /// What stands in its place.
    pub wrong: &'static str,
    /// Whether only a device with a matrix unit runs this code.
    pub matrix_unit: bool,
}

const fn bug(
    name: &'static str,
    gate: &'static str,
    file: &'static str,
    right: &'static str,
    wrong: &'static str,
) -> Bug {
    Bug { name, gate, file, right, wrong, matrix_unit: false }
}

const fn on_matrix_unit(
    name: &'static str,
    gate: &'static str,
    file: &'static str,
    right: &'static str,
    wrong: &'static str,
) -> Bug {
    Bug { name, gate, file, right, wrong, matrix_unit: true }
}

const ADD_NORM: &str = "kernels/src/add_norm.rs";
const ATTENTION: &str = "model/src/layers/attention.rs";
const BLOCK: &str = "model/src/layers/block.rs";
const CACHE_WRITE: &str = "kernels/src/cache_write.rs";
const COMBINE: &str = "kernels/src/combine.rs";
const DENSE: &str = "kernels/src/dense_attention.rs";
const DISPATCH: &str = "kernels/src/dispatch.rs";
const DEQUANTISE: &str = "kernels/src/dequantise.rs";
const EMBEDDING: &str = "kernels/src/embedding.rs";
const EXPERTS: &str = "model/src/layers/experts.rs";
const CONFIG: &str = "model/src/config.rs";
const FOLD: &str = "kernels/src/fold_scales.rs";
const GEMM: &str = "kernels/src/gemm.rs";
const GROUPED: &str = "kernels/src/grouped_gemm.rs";
const PAIRS: &str = "kernels/src/grouped_gemm/pairs.rs";
const PRODUCT: &str = "kernels/src/product.rs";
const HADAMARD: &str = "kernels/src/hadamard.rs";
const INDEXER: &str = "kernels/src/indexer.rs";
const INDEXER_KEYS: &str = "kernels/src/indexer/keys.rs";
const KEYS: &str = "kernels/src/keys.rs";
const LAYER_INDEXER: &str = "model/src/layers/indexer.rs";
const LOAD: &str = "kernels/src/tile/load.rs";
const MASK: &str = "kernels/src/tile/mask.rs";
const MERGE: &str = "kernels/src/merge_splits.rs";
const MODEL_ROUTER: &str = "model/src/layers/router.rs";
const NOTED: &str = "kernels/src/keys/noted.rs";
const NORM: &str = "kernels/src/norm.rs";
const PIPELINE: &str = "kernels/src/tile/pipeline.rs";
const POLICY: &str = "kernels/src/top_k/policy.rs";
const QUANT: &str = "kernels/src/quant.rs";
const RADIX: &str = "kernels/src/top_k/radix.rs";
const RECORD: &str = "kernels/src/keys/record.rs";
const RANDOM_WEIGHTS: &str = "kernels/src/random_weights.rs";
const ROPE: &str = "kernels/src/rope.rs";
const ROUTER: &str = "kernels/src/router.rs";
const SLOTS: &str = "kernels/src/slots.rs";
const SOFTMAX: &str = "kernels/src/tile/softmax.rs";
const SPARSE: &str = "kernels/src/sparse_attention.rs";
const STEP: &str = "model/src/run/batch.rs";
const SWIGLU: &str = "kernels/src/swiglu.rs";
const TILES: &str = "kernels/src/tile/tiles.rs";
const TURNS: &str = "kernels/src/tile/turns.rs";
const TOP_K: &str = "kernels/src/top_k.rs";

/// All bugs.
#[rustfmt::skip]
pub const BUGS: &[Bug] = &[
    // Quantisation, and what is written to the caches.
    bug("a scale is rounded down to a power of two", "act_quant", QUANT,
        "select((bits & 0x007f_ffffu32) != 0, 1u32, 0u32)", "0u32.runtime()"),
    bug("a block of zeros has the scale 0", "act_quant", QUANT,
        "max(amax, 1.0e-4f32)", "amax"),
    bug("the round trip leaves out the scale", "round_trip", QUANT,
        "Vector::<f32, N>::cast_from(codes) * Vector::new(block.scale)",
        "Vector::<f32, N>::cast_from(codes)"),
    bug("every block's scale goes to the first one's place", "store_kv", CACHE_WRITE,
        "write_f32(cache, at + rank + 4 * block, scale);", "write_f32(cache, at + rank, scale);"),
    bug("the rope part's bytes are swapped", "store_kv", CACHE_WRITE,
        "u8::cast_from(bits >> 8)", "u8::cast_from(bits & 0xffu32)"),
    bug("an index key's scale goes to the page's first slot", "store_index_keys", CACHE_WRITE,
        "codes_end + 4 * row", "codes_end"),
    bug("of two rows for one slot the first wins, or any", "store_kv", SLOTS,
        "again = again || slots[later] == slot;", ""),
    bug("slot 0 is taken for none", "place_rows", SLOTS,
        "!again && slot >= 0 && slot < n_slots as i32", "!again && slot > 0 && slot < n_slots as i32"),
    // Rotations, norms, products.
    bug("the Hadamard factor is 1/n", "hadamard", HADAMARD,
        "comptime![1.0 / (n as f32).sqrt()]", "comptime![1.0 / n as f32]"),
    bug("a butterfly subtracts the wrong way", "hadamard", HADAMARD,
        "values[i + half] = a - b;", "values[i + half] = b - a;"),
    bug("the rotation has the wrong sign", "rope", ROPE,
        "sum_of_products(xa, c, -xb, s)", "sum_of_products(xa, c, xb, s)"),
    bug("half-split pairs for interleaved ones", "rope", ROPE,
        "(2 * i, 2 * i + 1)", "(i, i + share.vectors)"),
    bug("eps outside the root", "rms_norm", NORM,
        "(square + eps).sqrt()", "(square.sqrt() + eps)"),
    bug("LayerNorm without its bias", "layer_norm", NORM,
        "fma(y, weight[i], bias[i])", "(y * weight[i])"),
    bug("the last column of a row is dropped", "gemm", LOAD,
        "left_of(cols, col)", "left_of(cols, col + 1)"),
    bug("every step of a product takes the first columns", "gemm", GEMM,
        "min(n * comptime![self.x_ring.shape.cols], self.x_rows.cols)", "min(0usize.runtime(), self.x_rows.cols)"),
    // The fp8 linear and the experts.
    bug("every block has the first one's scale", "linear_fp8", PRODUCT,
        "self.x[self.rows[own] + b]", "self.x[self.rows[own]]"),
    bug("a weight's rows have the first 128 rows' scales", "linear_fp8", PRODUCT,
        "before + (col + col_of(0usize, layout)) / BLOCK * blocks", "before"),
    bug("a block replaces the sum of those before it", "linear_fp8", PRODUCT,
        "fma(block.get(own, cell), factor, sums.get(own, cell))", "block.get(own, cell) * factor"),
    bug("every expert has the first one's weights", "grouped_gemm", GROUPED,
        "expert * w.stride(0)", "0usize.runtime()"),
    bug("every expert has the first one's scales", "grouped_gemm_fp8", GROUPED,
        "expert * m_blocks * blocks", "0usize.runtime()"),
    bug("pairs of no expert get the last one's weights", "grouped_gemm", GROUPED,
        "select(pairs.expert == expert, k.div_ceil(tiling.k), 0usize)", "k.div_ceil(tiling.k)"),
    bug("a pair is taken for its token", "grouped_gemm", PAIRS,
        "order[pairs.first + i] as u32 / top_k as u32", "order[pairs.first + i] as u32"),
    bug("an expert's second tile is its first again", "grouped_gemm", PAIRS,
        "start + (nth - tile) * rows", "start"),
    bug("the factor is folded twice", "fold_scales", FOLD,
        "select(shrinks, larger, smaller) * factor", "select(shrinks, larger, smaller) * factor * factor"),
    // The indexer.
    bug("no relu", "indexer_logits", INDEXER,
        "max_nan(dot, Vector::new(0.0f32)) * weight", "dot * weight"),
    bug("the sigmoid's sign, which only another score function shows", "indexer_logits_paged", INDEXER,
        "(Vector::new(0.0f32) - dot).exp()", "dot.exp()"),
    bug("another head's weight", "indexer_logits", INDEXER,
        "queries.row(t) * weights.stride(0) + h", "queries.row(t) * weights.stride(0) + (queries.heads - 1 - h)"),
    bug("a range ends one key early", "indexer_logits", MASK,
        "col < self.end[i]", "col + 1 < self.end[i]"),
    bug("the key's scale is left out", "indexer_logits", INDEXER,
        "sum * own.scale[i]", "sum"),
    bug("every drafted token sees the whole context", "indexer_logits_paged", INDEXER_KEYS,
        "max(self.all.ends[self.request], 0i32) - self.rows as i32 + i as i32 + 1",
        "max(self.all.ends[self.request], 0i32)"),
    bug("the wrong page of the block table", "indexer_logits_paged", INDEXER_KEYS,
        "select(exists, entry, 0i32) as usize", "0usize.runtime()"),
    // The selection.
    bug("the window is one key too long", "top_k", POLICY,
        "age < window", "age <= window"),
    bug("one sink too many", "top_k", POLICY,
        "position - start < sinks", "position - start <= sinks"),
    bug("a fraction is rounded down", "top_k", POLICY,
        "(len % 1000 * per_mille).div_ceil(1000u32)", "(len % 1000 * per_mille) / 1000u32"),
    bug("-0 is below +0", "top_k", POLICY,
        "u32::reinterpret(logit + 0.0f32)", "u32::reinterpret(logit)"),
    bug("the best columns are counted from the end", "top_k", RADIX,
        "tools.marks.insert(column - first)", "tools.marks.insert(limit - 1 - (column - first))"),
    bug("what is no key is shifted too", "shift_indices", TOP_K,
        "select(index >= 0, index + first[i / topk], index)", "index + first[i / topk]"),
    // Attention over listed keys.
    bug("the next block's scale at a block's last columns", "sparse_mla_paged", RECORD,
        "codes_to_f32(codes, machine) * Vector::new(scale)",
        "codes_to_f32(codes, machine) \
         * Vector::new(read_f32(records, at + kv_lora_rank + (col + LANES) / BLOCK * 4))"),
    bug("no scale where a record is read by bytes", "sparse_mla_paged", RECORD,
        "f32::cast_from(code) * scale", "f32::cast_from(code)"),
    bug("topk_length is ignored", "sparse_mla", KEYS,
        "max(clamp(self.ends[t], 0i32, limit) as usize, start)", "self.limit"),
    bug("what is no key counts with the score 0", "sparse_mla", NOTED,
        "select(row >= 0, u32::MAX, 0u32)", "0xffff_ffffu32.runtime()"),
    bug("keys beyond the last whole tile are dropped", "sparse_mla", KEYS,
        "(end - start).div_ceil(keys)", "(end - start) / keys"),
    bug("the accumulator is not rescaled", "sparse_mla", TURNS,
        "acc.scale_row(own, self.own[own]);", ""),
    on_matrix_unit("outputs are rescaled by the factors of the other place", "sparse_mla", TURNS,
        "self.factors[n % PLACES * comptime![layout.rows] + row_of(own, layout)]",
        "self.factors[(n + 1) % PLACES * comptime![layout.rows] + row_of(own, layout)]"),
    on_matrix_unit("missing keys are noted as keys", "sparse_mla", NOTED,
        "select(exists, u32::MAX, 0u32)", "0xffff_ffffu32.runtime()"),
    bug("the sum is not rescaled", "dense_mla", SOFTMAX,
        "self.sum[own] *= factor;", ""),
    bug("lse in base two", "dense_mha", SOFTMAX,
        "self.sum[own].ln()", "self.sum[own].ln() * 1.442_695f32"),
    bug("the sink is left out", "sparse_mla", SPARSE,
        "scales[own] *= sink_factor(scores.softmax.lse(own), sink[head], machine);", ""),
    bug("the first head's sink for all, where splits are merged", "sparse_mla_paged", MERGE,
        "sink[divided(row, heads).1]", "sink[0]"),
    bug("splits are merged relative to 0", "sparse_mla", MERGE,
        "top + sum.ln()", "sum.ln()"),
    // Dense attention.
    bug("a range begins at the first key", "dense_mla", KEYS,
        "clamp(self.starts[t], 0i32, limit) as usize", "0usize.runtime()"),
    bug("the causal mask is one key late", "dense_mha", MASK,
        "col < self.end[i]", "col <= self.end[i]"),
    bug("only the end of a range is masked", "dense_mha", DENSE,
        "n0 < seen.last_start || n0 + (keys as i32) > seen.first_end",
        "n0 + (keys as i32) > seen.first_end"),
    // The half of a layer that attends to nothing.
    bug("a partial block of columns has no scale of its own", "dequantise", DEQUANTISE,
        "row / BLOCK * cols.div_ceil(BLOCK)", "row / BLOCK * (cols / BLOCK)"),
    bug("half of the key decides nothing", "random_weights", RANDOM_WEIGHTS,
        "mix(i + low) ^ high", "mix(i + low)"),
    bug("the first row of the table is taken for none", "embedding", EMBEDDING,
        "id >= 0 && id < table.shape(0) as i32", "id > 0 && id < table.shape(0) as i32"),
    bug("the norm of the rounded sum", "add_rms_norm", ADD_NORM,
        "Vector::<f32, N>::cast_from(self.x[self.of_x + i]) + residual",
        "Vector::<f32, N>::cast_from(round_vector::<E, N>(\
         Vector::<f32, N>::cast_from(self.x[self.of_x + i]) + residual, comptime![self.machine]))"),
    bug("the residual is cut, not rounded", "add_rms_norm", ADD_NORM,
        "round_vector::<E, N>(sum, machine)",
        "round_vector::<E, N>(Vector::<f32, N>::reinterpret(\
         Vector::<u32, N>::reinterpret(sum) & Vector::new(0xffff_0000u32)), machine)"),
    bug("a masked expert has the score 0", "router", ROUTER,
        "select(open, score, f32::NEG_INFINITY)", "select(open, score, 0.0f32)"),
    bug("weights from biased scores", "router", ROUTER,
        "chosen[place] = gates[expert];", "chosen[place] = biased[expert];"),
    bug("a group's score is its best expert's", "router", ROUTER,
        "best + second", "best"),
    bug("of equal experts the highest first", "router", ROUTER,
        "self.keys[other] == key && other < own", "self.keys[other] == key && other > own"),
    bug("a pair of no expert goes to the last", "dispatch", DISPATCH,
        "min(index as u32, experts)", "min(index as u32, experts - 1)"),
    bug("the pairs of lower experts are not counted", "dispatch", DISPATCH,
        "(below + own.before) as usize", "own.before as usize"),
    bug("silu of a negative number as of a positive", "swiglu", SWIGLU,
        "select(gate < 0.0f32, h, 1.0f32)", "1.0f32.runtime()"),
    bug("experts are summed in the order of the list", "combine", COMBINE,
        "other < expert || (other == expert && i < j)", "i < j"),
    bug("the shared network is left out", "combine", COMBINE,
        "sum += Vector::<f32, N>::cast_from(shared.data[at]);", ""),
    // What only a matrix unit shows.
    on_matrix_unit("rows are stored without the swizzle in which they are multiplied", "gemm", TILES,
        "panels.offset(row, v * LANES, size) / LANES", "row * comptime![shape.vectors()] + v"),
    on_matrix_unit("a stage is read before it has arrived", "gemm", PIPELINE,
        "wait_copies(comptime![schedule.ahead - 1]);", "wait_copies(comptime![schedule.ahead + 1]);"),
    // The layer.
    bug("half-split pairs in the main attention", "layer", ATTENTION,
        "rope(from, &rotary.cos, &rotary.sin, batch.at(), to, pairing)",
        "rope(from, &rotary.cos, &rotary.sin, batch.at(), to, Pairing::HalfSplit)"),
    bug("the latent query is not normalised", "layer", ATTENTION,
        "rms_norm(&qr, &self.q_a_layernorm, eps)?", "qr.clone()"),
    bug("a token does not see itself", "layer", STEP,
        "begin(row) + p + 1", "begin(row) + p"),
    bug("index keys without position", "layer", LAYER_INDEXER,
        "self.turn(&k, 1, batch)", "Ok(k.clone())"),
    bug("the indexer's pairs are the other ones", "model", LAYER_INDEXER,
        "pairing(c.indexer_rope_interleaved)", "pairing(!c.indexer_rope_interleaved)"),
    bug("the scale is without mscale", "layer", CONFIG,
        "self.rope_scaling.map_or(1.0, |yarn| temperature(&yarn, yarn.mscale_all_dim))", "1.0"),
    bug("the latent is not rounded", "layer", ATTENTION,
        "round_trip(&latent, &latent, c.scale_fmt())?;", ""),
    // The whole model.
    bug("the index keys' norm is an RMSNorm", "model", LAYER_INDEXER,
        "layer_norm(&k, weight, bias, K_NORM_EPS)?", "dsa_kernels::norm::rms_norm(&k, weight, K_NORM_EPS)?"),
    bug("a layer that shares its keys runs dense", "model", ATTENTION,
        "self.attend(&q, indices.as_ref(), batch, cache)",
        "self.attend(&q, indices.as_ref().filter(|_| self.indexer.is_some()), batch, cache)"),
    bug("the latents' norms have the eps of the others", "model", ATTENTION,
        "c.latent_norm_eps as f32", "c.rms_norm_eps as f32"),
    bug("the second half's norm does not see the residual", "model", BLOCK,
        "self.post_attention_layernorm.forward(&attention, Some(&residual))",
        "self.post_attention_layernorm.forward(&attention, None).map(|(x, _)| (x, residual.clone()))"),
    bug("the shared experts are left out", "model", EXPERTS,
        "combine(&y, &pairs, &routing, Some(&shared), dtype)",
        "combine(&y, &pairs, &routing, None, dtype)"),
    bug("a token's choice of experts does not see the bias", "model", MODEL_ROUTER,
        "router(&logits, &self.e_score_correction_bias, &self.config)",
        "router(&logits, &logits.device().upload_f32(&vec![0.0; logits.shape()[1]], \
         &[logits.shape()[1]], dsa_kernels::DType::F32)?, &self.config)"),
];
