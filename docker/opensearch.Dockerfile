# OpenSearch with the title-rerank plugin.
#   docker build -f docker/opensearch.Dockerfile -t titlecast-opensearch .

ARG OPENSEARCH_VERSION=3.8.0

FROM maven:3.9-eclipse-temurin-21 AS build
ARG OPENSEARCH_VERSION
WORKDIR /build
COPY plugin/opensearch/pom.xml ./
COPY plugin/opensearch/src src
RUN mvn -B -q -Dopensearch.version=${OPENSEARCH_VERSION} -Dmaven.test.skip=true -Dspotless.check.skip=true package \
    && mv target/titlecast-opensearch-plugin-*.zip /plugin.zip

FROM opensearchproject/opensearch:${OPENSEARCH_VERSION}
COPY --from=build --chown=opensearch:opensearch /plugin.zip /tmp/plugin.zip
# --batch: the plugin asks for the permission to connect to sidecars, and nobody is there to grant it.
RUN bin/opensearch-plugin install --batch file:///tmp/plugin.zip && rm /tmp/plugin.zip
