#!/bin/sh
# Make what the stack keeps secret, in the folder given (deploy/secrets): passwords, a token, and an authority of its own
# with certificates. What is there already stays. The folder is for its owner alone; the files in it can be read by all,
# for containers see each of them as users of their own.
set -eu
umask 077
folder=${1:-$(dirname "$0")/secrets}
mkdir -p "$folder"
cd "$folder"
curve="-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc -days 825"

random() { # NAME [PREFIX]
    [ -s "$1" ] || printf '%s%s\n' "${2:-}" "$(openssl rand -base64 32 | tr -d '\n')" >"$1"
}
certificate() { # NAME SUBJECT-ALTERNATIVE-NAMES
    [ -s "$1.pem" ] && [ -s "$1.key" ] && return
    # shellcheck disable=SC2086 # options, word by word
    openssl req -x509 -CA ca.pem -CAkey ca.key $curve -keyout "$1.key" -out "$1.pem.part" -subj "/CN=$1" \
        -addext "subjectAltName=$2" -addext "basicConstraints=critical,CA:FALSE" 2>/dev/null
    mv "$1.pem.part" "$1.pem"
    rm -f kafka.pem
}

random metrics-token
random grafana-password
random webhook-secret whsec_
[ -s kafka-password ] || openssl rand -hex 32 >kafka-password # Kafka's tool reads no = or + in it
if [ ! -s ca.pem ]; then
    rm -f broker.pem pages.pem # of the authority before
    # shellcheck disable=SC2086
    openssl req -x509 $curve -keyout ca.key -out ca.pem -subj "/CN=Offbeat stack" 2>/dev/null
fi
certificate broker DNS:kafka,DNS:localhost,IP:127.0.0.1
certificate pages DNS:worker,DNS:trainer,DNS:alerts,DNS:localhost,IP:127.0.0.1
[ -s kafka.pem ] || cat broker.key broker.pem >kafka.pem
chmod 700 .
chmod 444 ./*
chmod 400 ca.key broker.key
