#!/usr/bin/env bash
# Makes this machine able to build and run the workbench. Idempotent; says what it does; tries nothing twice.
#
# The one thing that needs care is LLVM. CubeCL's build script downloads an LLVM 23 bundle from GitHub. Where GitHub
# cannot be reached, this script installs the distribution's LLVM 22 and presents it as that bundle: the build script
# accepts any folder <data>/tracel/tracel-llvm-<version> that holds `.tracel-llvm-installed` and `bin/llvm-config`.
set -euo pipefail

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
