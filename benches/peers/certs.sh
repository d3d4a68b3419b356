#!/usr/bin/env bash
# Makes a trial CA and two SPIFFE identities, `client` and `server`, in the given folder. Each
# leaf has one URI, as a SPIFFE certificate must, and also `localhost`, which HAProxy and nginx
# verify instead, because they cannot require a SPIFFE id of their peer.
set -euo pipefail
cd "${1:?usage: certs.sh FOLDER}"
[ -f server.both.pem ] && exit 0

new_key() { openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt -out "$1"; }

new_key ca.key
openssl req -x509 -new -key ca.key -days 30 -subj "/O=Pannier bench/CN=Pannier bench CA" -out ca.pem
for name in client server; do
  new_key "$name.key"
  openssl req -new -key "$name.key" -subj "/CN=$name" -out "$name.csr"
  cat >"$name.ext" <<END
subjectAltName=critical,URI:spiffe://cluster.local/ns/default/sa/$name,DNS:localhost
extendedKeyUsage=serverAuth,clientAuth
keyUsage=critical,digitalSignature
basicConstraints=critical,CA:FALSE
END
  openssl x509 -req -in "$name.csr" -CA ca.pem -CAkey ca.key -CAcreateserial -days 30 -extfile "$name.ext" -out "$name.pem"
  cat "$name.pem" "$name.key" >"$name.both.pem"
done
