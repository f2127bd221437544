//! What the contract of a kernel does not say is refused with the name of the tensor or scalar, by the gate's check and
//! by the launcher itself, before any work: every line of every kernel, from the lines themselves.

use crate::support::*;
use dsa_gate::case::MISPLACED;
use dsa_gate::kernels::{ALL, Kernel};
use dsa_gate::{Case, CaseError, HostTensor};
use dsa_kernels::contract::{Kind, Range, ScalarLine, SizeLine, Sizes, Strides, TensorLine};
use dsa_kernels::{DType, KernelError};

fn zeros(dtype: DType, shape: &[usize]) -> HostTensor {
    let bytes = vec![0; shape.iter().product::<usize>() * dtype.size()];
    HostTensor { dtype, shape: shape.to_vec(), bytes }
}

/// The launcher's own refusal of `case`, if it is one before any work.
#[track_caller]
fn by_launcher(kernel: &Kernel, case: &Case) -> String {
    match (kernel.launch)(&device(), case) {
        Ok(outputs) => panic!("{case:?} was let through: {outputs:?}"),
        Err(CaseError::Kernel(KernelError::Launch { reason, .. })) => {
            panic!("{case:?} reached the device: {reason}")
        }
        Err(error) => error.to_string(),
    }
}

/// Both refuse `case`, naming one of `names`.
#[track_caller]
fn refused(kernel: &Kernel, case: &Case, names: &[&str]) {
    let by_contract = kernel.check(case).expect_err("the contract takes it").to_string();
    assert_eq!(kernel.reference(case).unwrap_err().to_string(), by_contract);
    for message in [by_contract, by_launcher(kernel, case)] {
        let word = |text: &str| names.contains(&text);
        let named = message.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').any(word);
        let launcher_name = kernel.name == "store_index_keys" && message.starts_with("x ");
        let says = message.contains("expected ") || message.contains("has no tensor");
        assert!((named || launcher_name) && says, "{names:?} of {case:?}: {message}");
    }
}

/// The sample of `kernel`; with every tensor that may be left out; and with those in place of which others stand.
fn variants(kernel: &Kernel) -> Vec<Case> {
    let sample = (kernel.sample)();
    let mut full = sample.clone();
    let mut other = sample.clone();
    {
        let bound = kernel.bind(&sample).unwrap();
        for line in kernel.tensor_lines().unwrap() {
            let there = sample.tensors.contains_key(line.name);
            if there && line.instead.is_some() {
                other.tensors.remove(line.name);
            }
            if there || !(line.optional || line.instead.is_some()) {
                continue;
            }
            let shape = bound.named().shape(&line.shapes[0]).unwrap_or_else(|| vec![1]);
            let shape: Vec<_> = shape.into_iter().map(|n| n as usize).collect();
            let tensor = zeros(bound.types_of(&line)[0], &shape);
            let case = if line.optional { &mut full } else { &mut other };
            case.tensors.insert(line.name.to_string(), tensor);
        }
    }
    // Columns of the value on their own, where the latent's stand for them.
    if kernel.scalar_lines().unwrap().iter().any(|line| line.default == Some("kv_lora_rank")) {
        full = full.set("d_v", 1);
    }
    let mut all = vec![sample];
    for case in [full, other] {
        if !all.contains(&case) {
            kernel.check(&case).unwrap_or_else(|error| panic!("{case:?}: {error}"));
            all.push(case);
        }
    }
    all
}

/// Runs `refuse` on every tensor of every case of every kernel; counts them.
fn each_tensor(refuse: impl Fn(&'static Kernel, &Case, &TensorLine)) -> usize {
    let mut count = 0;
    for kernel in ALL {
        for case in variants(kernel) {
            for line in kernel.tensor_lines().unwrap() {
                if case.tensors.contains_key(line.name) {
                    refuse(kernel, &case, &line);
                    count += 1;
                }
            }
        }
    }
    count
}

/// The names in an axis.
fn names<'a>(axis: &'a str) -> impl Iterator<Item = &'a str> + use<'a> {
    let words = axis.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with(|c: char| c.is_ascii_alphabetic()))
}

#[test]
fn a_missing_tensor_is_refused_by_its_name() {
    let tensors = each_tensor(|kernel, whole, line| {
        let mut case = whole.clone();
        case.tensors.remove(line.name);
        if !line.optional {
            refused(kernel, &case, &[line.name, line.instead.unwrap_or(line.name)]);
        }
    });
    assert!(tensors > 90, "{tensors}");
}

#[test]
fn a_tensor_beside_the_one_that_stands_instead_of_it_is_refused() {
    let mut count = 0;
    for kernel in ALL {
        for [a, b] in variants(kernel).array_windows() {
            for line in kernel.tensor_lines().unwrap() {
                if let (Some(tensor), Some(_)) = (b.tensors.get(line.name), line.instead)
                    && !a.tensors.contains_key(line.name)
                {
                    let both = a.clone().with(line.name, tensor.clone());
                    let message = kernel.check(&both).unwrap_err().to_string();
                    assert!(message.ends_with("expected one of the two"), "{message}");
                    count += 1;
                }
            }
        }
    }
    assert!(count > 0);
}

#[test]
fn a_tensor_of_each_type_that_its_line_does_not_have_is_refused_by_its_name() {
    each_tensor(|kernel, whole, line| {
        let types = kernel.bind(whole).unwrap().types_of(line);
        let shape = &whole.tensors[line.name].shape;
        for dtype in DType::ALL.into_iter().filter(|dtype| !types.contains(dtype)) {
            refused(kernel, &whole.clone().with(line.name, zeros(dtype, shape)), &[line.name]);
        }
    });
}

#[test]
fn a_tensor_of_a_wrong_rank_is_refused_by_its_name() {
    each_tensor(|kernel, whole, line| {
        let HostTensor { dtype, shape, .. } = &whole.tensors[line.name];
        let longer = [&[1, 1], &shape[..]].concat();
        for shape in [longer, vec![]] {
            refused(kernel, &whole.clone().with(line.name, zeros(*dtype, &shape)), &[line.name]);
        }
    });
}

#[test]
fn an_axis_of_another_size_than_its_name_has_elsewhere_is_refused() {
    let mut count = 0;
    for kernel in ALL {
        let lines = kernel.tensor_lines().unwrap();
        let scalars = kernel.scalar_lines().unwrap();
        for whole in variants(kernel) {
            let bound = kernel.bind(&whole).unwrap();
            let there: Vec<_> =
                lines.iter().filter(|line| whole.tensors.contains_key(line.name)).collect();
            let axes = |line: &TensorLine| {
                let rank = whole.tensors[line.name].shape.len();
                line.shapes.iter().find(|axes| axes.len() == rank).unwrap().clone()
            };
            for (nth, line) in there.iter().enumerate() {
                for (at, axis) in axes(line).iter().enumerate() {
                    let has = |other: &&&TensorLine| {
                        axes(other).iter().any(|of| names(of).any(|name| name == *axis))
                    };
                    let others: Vec<_> =
                        there.iter().filter(|other| other.name != line.name).filter(has).collect();
                    let is_name = names(axis).eq([*axis]);
                    if is_name && others.is_empty() {
                        continue;
                    }
                    // The first to have a name gives it its size: then the others are wrong.
                    let first =
                        is_name && there[..nth].iter().all(|line| !axes(line).contains(axis));
                    let mut wrong = vec![line.name];
                    if first {
                        wrong.extend(others.iter().map(|line| line.name));
                        // So may scalars be whose range it bounds.
                        let bounds = |line: &&ScalarLine| names(line.body).any(|of| of == *axis);
                        wrong.extend(scalars.iter().filter(bounds).map(|line| line.name));
                    }
                    let HostTensor { dtype, shape, .. } = &whole.tensors[line.name];
                    for size in [shape[at] + 1, shape[at] - 1] {
                        let mut shape = shape.clone();
                        shape[at] = size;
                        let as_numbers: Vec<_> = shape.iter().map(|n| *n as u128).collect();
                        let fits = |axes| bound.named().shape(axes).as_ref() == Some(&as_numbers);
                        // Others that round it up to whole blocks may be as large for the other size.
                        let with = with_size(kernel, &whole, axis, size as u128);
                        let of = |line: &TensorLine| {
                            let shape = &whole.tensors[line.name].shape;
                            with.shape(&axes(line))
                                == Some(shape.iter().map(|n| *n as u128).collect())
                        };
                        let same = first && others.iter().all(|line| of(line));
                        if !same && !line.shapes.iter().any(|axes| fits(axes)) {
                            let case = whole.clone().with(line.name, zeros(*dtype, &shape));
                            refused(kernel, &case, &wrong);
                            count += 1;
                        }
                    }
                }
            }
        }
    }
    assert!(count > 150, "{count}");
}

#[test]
fn a_tensor_with_gaps_where_its_line_has_none_is_refused_by_the_launcher() {
    each_tensor(|kernel, whole, line| {
        let places: &[&str] = match line.strides {
            Strides::Rows => &["within"],
            Strides::Contiguous => &["within", "behind"],
        };
        // Tensors of one axis have no rows, those of one element no gaps.
        let shape = &whole.tensors[line.name].shape;
        let rank = if shape.iter().product::<usize>() > 1 { shape.len() } else { 0 };
        for place in &places[..places.len().min(rank)] {
            let case = whole.clone().set(MISPLACED, format!("{} {place} rows", line.name));
            let message = by_launcher(kernel, &case);
            // What act_quant is given is its x.
            let name = if kernel.name == "store_index_keys" { "" } else { line.name };
            assert!(message.starts_with(name), "{} of {}: {message}", line.name, kernel.name);
            assert!(message.contains(" has strides "), "{message}");
        }
    });
}

/// Values out of `range`, whose bounds are expressions of `sizes`.
fn outside(range: &Range, sizes: &Sizes) -> Vec<u128> {
    let [least, most] = range.bounds(sizes);
    let below = least.and_then(|least| least.checked_sub(1));
    below.into_iter().chain(most.map(|most| most + 1)).collect()
}

/// What the names of `case` stand for, if `name` stands for `size`.
fn with_size(kernel: &Kernel, case: &Case, name: &'static str, size: u128) -> Sizes {
    let bound = kernel.bind(case).unwrap();
    let mut sizes = Sizes::default();
    sizes.bind(name, size);
    for axis in kernel.tensor_lines().unwrap().iter().flat_map(|line| line.shapes.iter().flatten())
    {
        for name in names(axis) {
            if let Some(size) = bound.named().get(name) {
                sizes.bind(name, size);
            }
        }
    }
    sizes
}

/// `case` of other `sizes`: zeros of the shapes that the lines have then.
fn resized(kernel: &Kernel, case: &Case, name: &'static str, size: u128) -> Case {
    let lines = kernel.tensor_lines().unwrap();
    let sizes = with_size(kernel, case, name, size);
    let mut resized = case.clone();
    for line in &lines {
        let Some(tensor) = case.tensors.get(line.name) else { continue };
        let axes = line.shapes.iter().find(|axes| axes.len() == tensor.shape.len()).unwrap();
        let shape: Vec<_> = sizes.shape(axes).unwrap().into_iter().map(|n| n as usize).collect();
        resized = resized.with(line.name, zeros(tensor.dtype, &shape));
    }
    resized
}

#[test]
fn a_size_out_of_its_range_is_refused_by_its_name() {
    let mut count = 0;
    for kernel in ALL {
        let sample = (kernel.sample)();
        for SizeLine { name, range, .. } in &kernel.contract.lines().unwrap().sizes {
            if names(name).ne([*name]) {
                continue;
            }
            for size in outside(range, &Sizes::default()) {
                refused(kernel, &resized(kernel, &sample, name, size), &[name]);
                count += 1;
            }
        }
    }
    assert!(count > 20, "{count}");
}

/// Texts that `line` does not take, whose bounds are expressions of `sizes`.
fn wrong_texts(line: &ScalarLine, sizes: &Sizes) -> Vec<String> {
    match &line.kind {
        Kind::Words(_) => vec!["nonsense".to_string()],
        Kind::Integer(range) => {
            let mut texts: Vec<_> =
                outside(range, sizes).iter().map(|number| number.to_string()).collect();
            texts.extend(["-1", "1.5", "18446744073709551616", ""].map(String::from));
            texts
        }
        Kind::Number(range) => {
            let mut texts = ["NaN", "inf", "-inf", "x"].map(String::from).to_vec();
            let [least, _] = range.bounds(sizes);
            texts.extend(least.map(|_| "-1".to_string()));
            texts.extend(least.filter(|_| range.text.starts_with("above")).map(|n| n.to_string()));
            texts
        }
    }
}

#[test]
fn a_scalar_that_is_missing_or_out_of_its_range_is_refused_by_its_name() {
    let mut count = 0;
    for kernel in ALL {
        let lines = kernel.scalar_lines().unwrap();
        for whole in variants(kernel) {
            let sizes = kernel.bind(&whole).unwrap().named().clone();
            for line in &lines {
                let mut case = whole.clone();
                if let Some((other, word)) = line.condition {
                    case = case.set(other, word);
                    for with in lines.iter().filter(|with| with.condition == line.condition) {
                        case = case.set(with.name, 1);
                    }
                    kernel.check(&case).unwrap();
                    let message = kernel.check(&whole.clone().set(line.name, 1)).unwrap_err();
                    assert!(message.to_string().contains("it is read only with"), "{message}");
                }
                // A scalar for which another stands is named for it.
                let stands = lines.iter().filter(|other| other.default == Some(line.name));
                let names: Vec<_> = stands.chain([line]).map(|line| line.name).collect();
                for text in wrong_texts(line, &sizes) {
                    refused(kernel, &case.clone().set(line.name, text), &names);
                    count += 1;
                }
                if !line.is_optional() {
                    case.scalars.remove(line.name);
                    refused(kernel, &case, &[line.name]);
                    count += 1;
                }
            }
        }
    }
    assert!(count > 100, "{count}");
}
