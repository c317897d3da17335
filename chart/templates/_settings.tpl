{{/* The forwarder's environment: these two maps are all that ConfigMap and Secret hold, and what rolls the pod. */}}

{{/* Directory of the files for the webhook. */}}
{{- define "aks-audit.webhookFiles" -}}
/etc/aks-audit/webhook
{{- end }}

{{/* Secrets whose keys are mounted there; a key that is missing keeps the pod from starting, and its events say so. */}}
{{- define "aks-audit.webhookSecrets" -}}
{{- with .Values.webhook }}
{{- if and .tls.secretName (or .tls.ca .tls.clientCertificate) }}
- secret:
    name: {{ .tls.secretName }}
    items:
      {{- range concat (.tls.ca | ternary (list "ca.crt") list) (.tls.clientCertificate | ternary (list "tls.crt" "tls.key") list) }}
      - key: {{ . }}
        path: {{ . }}
      {{- end }}
{{- end }}
{{- with .token }}
{{- if .secretName }}
- secret:
    name: {{ .secretName }}
    items:
      - key: {{ .key }}
        path: token
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* "true" if the webhook's URL holds what must not be shown. */}}
{{- define "aks-audit.webhookUrlIsSecret" -}}
{{- if regexMatch "[@?]" .Values.webhook.url }}true{{ end }}
{{- end }}

{{/* The audit policy as the forwarder reads it; nothing if there is none, or one that is built in. */}}
{{- define "aks-audit.auditPolicy" -}}
{{- if and .Values.auditPolicy (kindIs "map" .Values.auditPolicy) }}
{{- merge (deepCopy .Values.auditPolicy) (dict "apiVersion" "audit.k8s.io/v1" "kind" "Policy") | toYaml }}
{{- end }}
{{- end }}

{{/* What is secret, as a map of environment variables. */}}
{{- define "aks-audit.secrets" -}}
{{- with .Values.eventHub.connectionString | trim }}
EhubNamespaceConnectionString: {{ quote . }}
{{- end }}
{{- with .Values.blobStorage.connectionString | trim }}
BlobStorageConnectionString: {{ quote . }}
{{- end }}
{{- with .Values.webhook.headers }}
WebSinkHeaders: {{ toJson . | quote }}
{{- end }}
{{- if include "aks-audit.webhookUrlIsSecret" . }}
WebSinkURL: {{ quote .Values.webhook.url }}
{{- end }}
{{- end }}

{{/* What is not, likewise. Whole numbers go through int64: a float would be written as 1.048576e+06. */}}
{{- define "aks-audit.config" -}}
{{- with .Values.eventHub }}
{{- with .namespace }}
EventHubNamespace: {{ quote . }}
{{- end }}
{{- with .name }}
EventHubName: {{ quote . }}
{{- end }}
ConsumerGroup: {{ quote .consumerGroup }}
StartPosition: {{ quote .startPosition }}
HubTransport: {{ quote .transport }}
Categories: {{ join "," .categories | quote }}
LoadBalancingInterval: {{ quote .loadBalancingIntervalSeconds }}
OwnershipExpiry: {{ quote .ownershipExpirySeconds }}
ReceiveBufferBytes: {{ int64 .receiveBufferBytes | quote }}
{{- end }}
{{- with .Values.blobStorage }}
{{- with .accountUrl }}
BlobAccountUrl: {{ quote . }}
{{- end }}
BlobContainerName: {{ quote .containerName }}
{{- end }}
StateDirectory: {{ quote .Values.persistence.stateDirectory }}
CheckpointInterval: {{ quote .Values.checkpointIntervalSeconds }}
DeadLetterMaxBytes: {{ int64 .Values.deadLetterMaxBytes | quote }}
{{- if not (include "aks-audit.webhookUrlIsSecret" .) }}
WebSinkURL: {{ include "aks-audit.webhookUrl" . | quote }}
{{- end }}
{{- with .Values.webhook }}
WebSinkMaxEvents: {{ int64 .maxEvents | quote }}
WebSinkMaxBytes: {{ int64 .maxBytes | quote }}
WebSinkConcurrency: {{ int64 .concurrency | quote }}
WebSinkTimeout: {{ quote .timeoutSeconds }}
WebSinkMaxRejects: {{ int64 .maxRejects | quote }}
{{- if .token.secretName }}
WebSinkTokenFile: {{ include "aks-audit.webhookFiles" . }}/token
{{- end }}
{{- if and .tls.secretName .tls.ca }}
WebSinkCAFile: {{ include "aks-audit.webhookFiles" . }}/ca.crt
{{- end }}
{{- if and .tls.secretName .tls.clientCertificate }}
WebSinkCertFile: {{ include "aks-audit.webhookFiles" . }}/tls.crt
WebSinkKeyFile: {{ include "aks-audit.webhookFiles" . }}/tls.key
{{- end }}
{{- end }}
{{- with .Values.auditPolicy }}
AuditPolicyFile: {{ kindIs "map" . | ternary "/etc/aks-audit/policy/policy.yaml" . | quote }}
{{- end }}
{{- if .Values.clusterAnnotation }}
ClusterAnnotation: "true"
{{- end }}
{{- with .Values.resourceIds }}
ResourceIds: {{ join "," . | quote }}
{{- end }}
VerboseLevel: {{ int64 .Values.verboseLevel | quote }}
LogFormat: {{ quote .Values.logFormat }}
ShutdownGrace: {{ quote .Values.shutdownGraceSeconds }}
StallTimeout: {{ quote .Values.stallTimeoutSeconds }}
HttpPort: {{ int64 .Values.metrics.port | quote }}
{{- end }}
