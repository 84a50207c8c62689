#!/bin/sh
# Make the node's folder at the first start, with the user that Offbeat logs in as; then run Kafka.
set -eu
properties=/etc/offbeat-kafka/server.properties
/opt/kafka/bin/kafka-storage.sh format --ignore-formatted --cluster-id "$CLUSTER_ID" --config "$properties" \
    --add-scram "SCRAM-SHA-512=[name=offbeat,password=$(cat /run/secrets/kafka-password)]"
exec /opt/kafka/bin/kafka-server-start.sh "$properties"
