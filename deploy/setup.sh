#!/usr/bin/env bash
# Make .venv from requirements/<device>.txt: deploy/setup.sh [cpu|cuda]. Instant when nothing changed.
# Without one, for the device that .venv was last made for, else for CPUs; `deploy/setup.sh --device` says which that is.
set -euo pipefail
cd "$(dirname "$0")/.."

stamp=.venv/.equipoise-setup
made_for=$(cut -d' ' -f1 "$stamp" 2>/dev/null || true)
made_in=$(cut -d' ' -f3- "$stamp" 2>/dev/null || true)
device="${1:-${made_for:-cpu}}"
if [ "$device" = --device ]; then echo "${made_for:-cpu}"; exit 0; fi
case "$device" in
  cpu) lock=requirements/cpu.txt ;;
  cuda) lock=requirements/gpu.txt ;;
  *) echo "usage: deploy/setup.sh [cpu|cuda|--device]" >&2; exit 2 ;;
esac
python=.venv/bin/python

say() { echo "==> $*"; }
fail() { printf 'setup: %s\n' "$@" >&2; exit 1; }
locked() { grep -E "^$1==" "$lock" | head -n 1 | sed 's/ *;.*//'; }
supported() { "$1" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' >/dev/null 2>&1; }
place() { cd .venv && pwd -P; }  # its commands, and what is installed from here, have absolute paths
state() { echo "$device $({ "$python" -V; cat "$lock" pyproject.toml deploy/setup.sh; } 2>&1 | sha256sum | cut -d' ' -f1) $(place)"; }
whole() { supported "$python" && "$python" -m pip --version >/dev/null 2>&1; }  # a setup that was killed leaves no pip

find_python() {
  local name
  for name in python3.11 python3.12 python3.13 python3; do
    if supported "$name"; then command -v "$name"; return; fi
  done
  fail "no Python 3.11, 3.12 or 3.13 that can make virtual environments was found on PATH." \
    "Install one (on Debian and Ubuntu: apt-get install python3.11 python3.11-venv) and run this again."
}

check_system() {
  if ! command -v redis-server >/dev/null; then
    say "no redis-server on PATH: the one that comes with the Python packages serves jobs on this machine"
  fi
  [ "$device" = cpu ] || return 0
  "$python" -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null && return
  say "vLLM needs the system library libnuma on CPUs, and it is missing here"
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    say "installing libnuma1 with apt-get (a few seconds)"
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends libnuma1; } \
      >/dev/null || fail "apt-get could not install libnuma1: install it and run this again."
  else
    fail "install it (Debian, Ubuntu: sudo apt-get install libnuma1; Fedora: sudo dnf install numactl-libs) and run this again."
  fi
}

install_packages() {
  local count; count=$(grep -c == "$lock")
  if [ "$device" = cpu ]; then  # pip finds the CPU build where the machine is told to look for it; uv would take CUDA's
    say "installing $(locked torch), CPU build (about half a minute)"
    "$python" -m pip install -qq --no-deps "$(locked torch)"
    export UV_FIND_LINKS="${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}"
    [ -n "$UV_FIND_LINKS" ] || unset UV_FIND_LINKS
  fi
  say "installing $count packages (half a minute to a few minutes, as fast as the network)"
  "$python" -m pip install -qq --no-deps "$(locked uv)" || say "uv could not be installed"
  "$python" -m uv pip install -qq --python "$python" --no-deps -r "$lock" || {
    say "uv did not succeed: installing with pip instead (about two minutes)"
    "$python" -m pip install -qq --no-deps -r "$lock"
  }
  say "installing Equipoise itself, from this folder (a few seconds)"
  "$python" -m pip install -qq --no-deps --no-build-isolation -e .
}

check_packages() {
  say "checking that torch and vLLM work (a few seconds)"
  local cuda; cuda=$("$python" -W ignore -c 'import torch; print(torch.version.cuda or "none")') || fail "torch can't be imported."
  if [ "$device" = cpu ] && [ "$cuda" != none ]; then
    "$python" -m pip uninstall -qq --yes torch
    fail "pip found torch built for CUDA $cuda, and vLLM for CPUs needs the CPU build." \
      "Set PIP_EXTRA_INDEX_URL to PyTorch's package index for CPU wheels (its installation page names it) and run this again."
  fi
  [ "$device" = cpu ] || [ "$cuda" != none ] || fail "pip found torch without CUDA: remove .venv, check PIP_FIND_LINKS and PIP_EXTRA_INDEX_URL, and run this again."
  "$python" -W ignore -c 'import torch, vllm' >/dev/null || fail "torch works but vLLM can't be imported; the reason is above."
}

if [ -x "$python" ] && [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(state)" ]; then exit 0; fi
begin=$SECONDS
if [ "$device" = cpu ] && nvidia-smi -L >/dev/null 2>&1; then
  say "setting up for CPUs, and this machine has a GPU: DEVICE=cuda is for that"
fi
if [ -n "$made_in" ] && [ "$made_in" != "$(place)" ]; then
  say "this .venv was made in $made_in, and would run what is there: making it anew"
  made_for=elsewhere
fi
if ! whole || [ "${made_for:-$device}" != "$device" ]; then  # the two vLLM packages share a folder
  base=$(find_python)
  say "making .venv with $("$base" -V) (a few seconds)"
  "$base" -m venv --clear .venv
fi
echo "$device unfinished $(place)" > "$stamp"  # who comes back without saying which device goes on with this one
check_system
install_packages
check_packages
state > "$stamp"
say "ready after $((SECONDS - begin)) s: $(du -sh .venv 2>/dev/null | cut -f1) in .venv"
