//! Which cases a kernel is judged on.

use super::INPUTS;
use crate::case::Case;
use crate::generate::{Form, Forms, Model};
use crate::kernels::Kernel;
use crate::paths;
use dsa_kernels::Device;
use dsa_kernels::random::Rng;
use proptest::strategy::{BoxedStrategy, Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// One form in so many has a model's dimensions, the first one too.
const ONE_IN: usize = 4;

/// Forms that are drawn, at most, to find one that runs code which none so far does.
const DRAWS: usize = 300;

/// Forms that are tried, at most, to make a failing case smaller.
const SHRINKS: usize = 128;

/// One form and what its inputs follow from.
pub(super) struct Planned {
    pub form: Form,
    pub seeds: Vec<u64>,
    /// Which form of the plan it is.
    nth: usize,
    /// Whose dimensions it has.
    pub model: Option<Model>,
}

/// The cases of one kernel.
pub(super) struct Plan {
    pub forms: Vec<Planned>,
    /// The code paths of the device, and those that the cases run.
    pub all: Vec<&'static str>,
    pub ran: Vec<&'static str>,
    drawn_by: fn() -> Forms,
    seed: u64,
}

impl Plan {
    /// `cases` cases of `kernel` from `seed`; on a device so that they run all of its code, if there are enough.
    pub fn draw(
        kernel: &Kernel,
        device: Option<&Device>,
        cases: u32,
        seed: u64,
    ) -> Result<Self, String> {
        let all = device.map_or_else(Vec::new, |device| (kernel.paths.all)(device));
        let (drawn_by, mut ran) = (kernel.forms, Vec::new());
        let count = cases.div_ceil(INPUTS) as usize;
        let mut planned = Vec::new();
        for nth in 0..count {
            let model = model_of(nth);
            let mut numbers = Rng::new(seed.wrapping_add((nth as u64) << 32));
            let left = cases - nth as u32 * INPUTS;
            let seeds: Vec<u64> = (0..left.min(INPUTS)).map(|_| numbers.bits()).collect();
            let runs =
                |form: &Form| device.map_or_else(Vec::new, |d| paths::of(&form.case(seeds[0]), d));
            let new =
                |runs: &[&str]| runs.iter().any(|path| all.contains(path) && !ran.contains(path));
            let mut drawn = draw(drawn_by, seed, nth, 0)?.current();
            // The second half of the random forms is there for what the others left out.
            if model.is_none() && nth >= count / 2 && ran.len() < all.len() {
                for again in 1..DRAWS {
                    if new(&runs(&drawn)) {
                        break;
                    }
                    drawn = draw(drawn_by, seed, nth, again)?.current();
                }
            }
            for path in runs(&drawn) {
                if all.contains(&path) && !ran.contains(&path) {
                    ran.push(path);
                }
            }
            planned.push(Planned { form: drawn, seeds, nth, model });
        }
        Ok(Self { forms: planned, all, ran, drawn_by, seed })
    }

    /// How many cases have each model's dimensions.
    pub fn of_models(&self) -> Vec<(Model, u32)> {
        let count = |model| {
            let of = self.forms.iter().filter(|planned| planned.model == Some(model));
            of.map(|planned| planned.seeds.len() as u32).sum()
        };
        Model::ALL.map(|model| (model, count(model))).into_iter().filter(|(_, n)| *n > 0).collect()
    }

    /// The smallest case that `falls`, and why it does, from `planned` on; `None` if it falls no more.
    pub fn smallest(
        &self,
        planned: &Planned,
        falls: impl Fn(&Form) -> Option<(Case, String)>,
    ) -> Option<(Case, String)> {
        // A form is a function of the seed and its number: it is drawn again, as often as it was.
        let mut tree = (0..DRAWS)
            .filter_map(|again| draw(self.drawn_by, self.seed, planned.nth, again).ok())
            .find(|tree| format!("{:?}", tree.current()) == format!("{:?}", planned.form))?;
        let mut smallest = falls(&tree.current());
        let mut smaller = tree.simplify();
        for _ in 0..SHRINKS {
            if !smaller {
                break;
            }
            smaller = match falls(&tree.current()) {
                Some(fallen) => {
                    smallest = Some(fallen);
                    tree.simplify()
                }
                None => tree.complicate(),
            };
        }
        smallest
    }
}

/// Whose dimensions form `nth` has: each model's in turn.
fn model_of(nth: usize) -> Option<Model> {
    let turn = nth / ONE_IN % Model::ALL.len();
    nth.is_multiple_of(ONE_IN).then_some(Model::ALL[turn])
}

/// Form `nth`, in the `again`-th attempt at it.
fn draw(
    drawn_by: fn() -> Forms,
    seed: u64,
    nth: usize,
    again: usize,
) -> Result<Box<dyn ValueTree<Value = Form>>, String> {
    let forms = drawn_by();
    let strategy: BoxedStrategy<Form> = match model_of(nth) {
        Some(model) => forms.production[model as usize].clone(),
        None => forms.random,
    };
    let mut bytes = [0u8; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    bytes[8..16].copy_from_slice(&(nth as u64).to_le_bytes());
    bytes[16..24].copy_from_slice(&(again as u64).to_le_bytes());
    let config = Config { failure_persistence: None, ..Config::default() };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(config, rng);
    strategy.new_tree(&mut runner).map_err(|reason| reason.to_string())
}
