#!/bin/sh
# Make what docker-compose.cluster.yml and docker/walk-keys.yml keep secret, in secrets/ beside it; what is there already stays.
# The containers' users read the files; the folder keeps other users of this machine out.
set -eu
folder=${1:-secrets}
umask 022
mkdir -p "$folder"
chmod 700 "$folder"
cd "$folder"
[ -s database_password ] || openssl rand -hex 24 > database_password
[ -s database_url ] || printf 'postgresql+psycopg://gaitid:%s@database/gaitid\n' "$(cat database_password)" > database_url
[ -s walk_keys_password ] || openssl rand -hex 24 > walk_keys_password
[ -s walk_keys_url ] || printf 'postgresql+psycopg://gaitid:%s@walk-keys/gaitid\n' "$(cat walk_keys_password)" > walk_keys_url
[ -s store_key_id ] || echo gaitid > store_key_id
[ -s store_key ] || openssl rand -hex 24 > store_key
[ -s encryption_keys ] || openssl rand -base64 32 | tr '+/' '-_' > encryption_keys
if ! [ -s certificate.pem ]; then # signed by itself, for a trial: put yours and its key here
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 365 -subj /CN=localhost \
    -addext subjectAltName=DNS:localhost,IP:127.0.0.1 -keyout key.pem -out trusted.pem 2>/dev/null
  cat trusted.pem key.pem > certificate.pem
  rm key.pem
fi
