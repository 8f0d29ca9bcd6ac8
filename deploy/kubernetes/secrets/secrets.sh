#!/usr/bin/env bash
# Make what an installation keeps secret: secrets.sh [DIR]. Files that are there stay as they are, so that running it
# again adds what is missing; rotate one by deleting it first (deploy/README.md says what to restart). A certificate of
# Redis that ends within 90 days is made anew, as nothing can reach Redis from then on.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
out="${1:-$here/files}"
host="${EQUIPOISE_REDIS_HOST:-redis:6379}"
umask 077
mkdir -p "$out"

make() { local text; text="$(cat)"; [ -s "$out/$1" ] || printf '%s\n' "$text" > "$out/$1"; }
random() { openssl rand -hex 32; }
sha256() { printf %s "$1" | openssl dgst -sha256 -r | cut -d' ' -f1; }

lasts() { openssl x509 -noout -checkend "$(($2 * 86400))" -in "$out/$1" >/dev/null; } # FILE DAYS

# An authority of our own, and the certificate that Redis shows.
if [ ! -s "$out/ca.crt" ]; then
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 -subj "/CN=equipoise redis" \
    -addext keyUsage=critical,keyCertSign,cRLSign -keyout "$out/ca.key" -out "$out/ca.crt" 2>/dev/null
fi
lasts ca.crt 397 || echo "ca.crt ends within 397 days: delete ca.* and tls.*, and run this again (README, Rotate)" >&2
certify() {
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/CN=redis" \
    -keyout "$out/new.key" -out "$out/tls.csr" 2>/dev/null
  openssl x509 -req -in "$out/tls.csr" -CA "$out/ca.crt" -CAkey "$out/ca.key" -CAcreateserial -days 397 -out "$out/new.crt" \
    -extfile <(echo "subjectAltName=DNS:redis,DNS:redis.equipoise.svc,DNS:redis-0.redis-pods.equipoise.svc,DNS:localhost,IP:127.0.0.1") 2>/dev/null
  rm "$out/tls.csr"
  mv "$out/new.key" "$out/tls.key"
  mv "$out/new.crt" "$out/tls.crt"
}
if [ ! -s "$out/tls.crt" ]; then
  certify
elif ! lasts tls.crt 90; then
  if [ -s "$out/ca.key" ]; then
    certify
    echo "tls.crt ended within 90 days and was made anew: apply it, then restart statefulset/redis" >&2
  else
    echo "tls.crt ends within 90 days, and ca.key is not here: put another tls.crt and tls.key there" >&2
  fi
fi

rules="$(sed -e "s/@COMMANDS@/$(tr '\n' ' ' < "$here/commands.acl")/" "$here/users.acl.in")"
for user in api worker driver scripts admin; do
  random | make "$user.password"
  password="$(cat "$out/$user.password")"
  echo "rediss://$user:$password@$host/0?ssl_ca_certs=/run/secrets/redis-ca/ca.crt" | make "$user.url"
  rules="${rules//@$(tr '[:lower:]' '[:upper:]' <<< "$user")@/$(sha256 "$password")}"
done
printf '%s\n' "$rules" > "$out/users.acl"

for name in api-key metrics-key; do
  echo "eqp_$(openssl rand -base64 32 | tr '+/' '-_' | tr -d '=\n')" | make "$name"
done
random | make auth_token
# A section for each object store (s3fs and boto read it); and a line NAME=KEY for each judge.
echo "# [default] with aws_access_key_id and aws_secret_access_key" | make object-store-credentials
echo "# NAME=KEY, which judges.yaml names as /run/secrets/judges/NAME" | make judge-keys.env
