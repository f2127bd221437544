#!/usr/bin/env bash
# Makes this machine able to build and run the workbench. Idempotent; says what it does; tries nothing twice.
#
# The one thing that needs care is LLVM. CubeCL's build script downloads an LLVM 23 bundle from GitHub. Where GitHub
# cannot be reached, this script installs the distribution's LLVM 22 and presents it as that bundle: the build script
# accepts any folder <data>/tracel/tracel-llvm-<version> that holds `.tracel-llvm-installed` and `bin/llvm-config`.
set -euo pipefail
cd "$(dirname "$0")"

bundle_version=23.1.0-4
data=${XDG_DATA_HOME:-$HOME/.local/share}
bundle=$data/tracel/tracel-llvm-$bundle_version

say() { printf 'setup: %s\n' "$*"; }

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

install_llvm_22() {
  local packages=(llvm-22-dev libpolly-22-dev liblld-22-dev libzstd-dev zlib1g-dev g++) missing=()
  for p in "${packages[@]}"; do
    dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing+=("$p")
  done
  if [ ${#missing[@]} -gt 0 ]; then
    say "installing ${missing[*]} with apt-get"
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
  fi
  mkdir -p "$bundle/bin"
  # llvm-config reports two system libraries that must not be linked: libz3 is printed as a path, which the bundler
  # garbles into a name, and libxml2 is not needed by anything CubeCL pulls in.
  cat > "$bundle/bin/llvm-config" <<'WRAPPER'
#!/bin/sh
out=$(/usr/lib/llvm-22/bin/llvm-config "$@") || exit $?
case " $* " in
  *" --system-libs "*)
    kept=
    for lib in $out; do
      case "$lib" in *libz3*|-lz3|-lxml2|*libxml2*) ;; *) kept="$kept $lib" ;; esac
    done
    out=${kept# } ;;
esac
printf '%s\n' "$out"
WRAPPER
  chmod +x "$bundle/bin/llvm-config"
  touch "$bundle/.tracel-llvm-installed"
  say "the distribution's LLVM $("$bundle/bin/llvm-config" --version) stands in for CubeCL's LLVM bundle ($bundle)"
}

if [ -e "$bundle/.tracel-llvm-installed" ]; then
  say "LLVM $("$bundle/bin/llvm-config" --version) is in place ($bundle)"
elif curl --silent --fail --location --head --max-time 10 --output /dev/null \
    "https://github.com/tracel-ai/tracel-llvm/releases" 2>/dev/null; then
  say "GitHub answers: CubeCL's build script will download its own LLVM bundle"
elif command -v apt-get >/dev/null; then
  say "GitHub does not answer: falling back to the distribution's LLVM 22"
  install_llvm_22
else
  say "GitHub does not answer and this is no Debian: install LLVM 22 (static) and lld, then make
$bundle/bin/llvm-config forward to its llvm-config and touch $bundle/.tracel-llvm-installed" >&2
  exit 1
fi

command -v cargo >/dev/null || { say "cargo is missing: install Rust 1.95 or newer from https://rustup.rs" >&2; exit 1; }

# What is fetched lies in setup/fetched, which git ignores. Each piece is unpacked beside its place and moved there when
# it is whole, so that an interrupted set-up leaves nothing half done.
mkdir -p fetched
scratch=$(mktemp -d fetched/.unpacking.XXXXXX)
trap 'rm -rf "$scratch"' EXIT

# CubeCL's table of AMD architectures ends at gfx942. The wavefront of an architecture that is not in it is unknown, and
# both the compiler and the HIP runtime refuse it. Cargo.toml builds cubecl-ir from this folder: the published crate, with
# gfx95* read as gfx94*, i.e. CDNA with wavefronts of 64 units.
#
# Cargo itself fetches the crate, for an empty project that needs it, from whatever registry, mirror or offline copy it is
# set up to use, and holds it to the checksum in that project's Cargo.lock: ours, with the entry for the published crate.
ir=cubecl-ir-0.12.0-pre.1
ir_checksum=4e09478aab51860e5740bbca04a6c4cef9bbcb9f2aeaa0eb1b007a2742f10f34
if ! grep -qs 'starts_with("gfx95")' "fetched/$ir/src/amd.rs"; then
  say "fetching $ir and teaching it gfx950"
  mkdir "$scratch/empty"
  cat > "$scratch/empty/Cargo.toml" <<PROJECT
[package]
name = "empty"
version = "0.0.0"
edition = "2024"
[lib]
path = "lib.rs"
[dependencies]
cubecl-ir = "=${ir#cubecl-ir-}"
[workspace]
PROJECT
  touch "$scratch/empty/lib.rs"
  registry=$(grep -m 1 '^source = ' ../Cargo.lock)
  sed '/^name = "cubecl-ir"$/{n;s|$|\n'"$registry"'\nchecksum = "'$ir_checksum'"|}' ../Cargo.lock > "$scratch/empty/Cargo.lock"
  host=$(rustc -vV | sed -n 's/^host: //p')
  (cd "$scratch/empty" && cargo fetch --quiet --target "$host")
  grep -q "$ir_checksum" "$scratch/empty/Cargo.lock" || { say "$ir is not the crate that was pinned" >&2; exit 1; }
  source=$(cd "$scratch/empty" && cargo metadata --quiet --offline --format-version 1 --filter-platform "$host" |
    grep -o '"manifest_path":"[^"]*/cubecl-ir\(-[0-9][^/"]*\)\?/Cargo.toml"' | sed 's/.*:"//; s|/Cargo.toml"$||')
  cp -Rp "$source" "$scratch/$ir"
  rm -f "$scratch/$ir/.cargo-ok"
  table=$scratch/$ir/src/amd.rs
  sed -i 's/norm\.starts_with("gfx94")/norm.starts_with("gfx94") || norm.starts_with("gfx95")/' "$table"
  grep -q 'starts_with("gfx95")' "$table" || { say "the line of $ir that names gfx94 was not found" >&2; exit 1; }
  # The date of the published files: cargo builds anew what is younger than its last build.
  touch -r "$scratch/$ir/Cargo.toml" "$table"
  rm -rf "fetched/$ir"
  mv "$scratch/$ir" fetched/
fi

# What compiles for an NVIDIA GPU with none at hand: libdevice (CubeCL links it for exp) and ptxas (it tells registers
# and spills). .cargo/config.toml points CUDA_PATH here unless it is set.
if [ -x "${CUDA_PATH:-}/bin/ptxas" ] && [ -e "${CUDA_PATH:-}/nvvm/libdevice/libdevice.10.bc" ]; then
  say "ptxas and libdevice are those of CUDA_PATH ($CUDA_PATH)"
elif [ "$(uname -m)" != x86_64 ]; then
  say "no ptxas is pinned for $(uname -m): set CUDA_PATH to a CUDA toolkit to see what kernels take of an NVIDIA GPU" >&2
elif [ ! -d fetched/cuda ]; then
  say "fetching ptxas and libdevice of CUDA 13.0"
  if ! python3 -m pip --version >/dev/null 2>&1; then
    say "installing python3-pip with apt-get"
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3-pip >/dev/null
  fi
  # The two wheels of requirements.txt, by their hashes, from whatever index pip is set up to use.
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --require-hashes \
    --platform manylinux2014_x86_64 --platform manylinux2010_x86_64 -r requirements.txt -d "$scratch"
  for wheel in "$scratch"/*.whl; do
    python3 -m zipfile -e "$wheel" "$scratch/wheel"
  done
  mkdir -p "$scratch/nvidia/cu13/bin" "$scratch/nvidia/cu13/nvvm"
  mv "$scratch/wheel/nvidia/cu13/bin/ptxas" "$scratch/nvidia/cu13/bin/"
  mv "$scratch/wheel/nvidia/cu13/nvvm/libdevice" "$scratch/nvidia/cu13/nvvm/"
  chmod +x "$scratch/nvidia/cu13/bin/ptxas"
  mv "$scratch/nvidia/cu13" fetched/cuda
fi
