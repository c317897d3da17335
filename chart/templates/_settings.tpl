{{/* The forwarder's environment: these two maps are all that ConfigMap and Secret have, and what rolls the pods. */}}

{{/* Directory of the files for the webhook. */}}
{{- define "aks-audit.webhookFiles" -}}
/etc/aks-audit/webhook
{{- end }}

{{/* Secrets whose keys are mounted there. If a key is missing, the pod does not start, and its events say why. */}}
{{- define "aks-audit.webhookSecrets" -}}
{{- with .Values.webhook.tls }}
{{- if and .secretName (or .ca .clientCertificate) }}
- secret:
    name: {{ quote .secretName }}
    items:
      {{- range concat (not .ca | ternary list (list "ca.crt")) (not .clientCertificate | ternary list (list "tls.crt" "tls.key")) }}
      - key: {{ . }}
        path: {{ . }}
      {{- end }}
{{- end }}
{{- end }}
{{- with .Values.webhook.token }}
{{- if .secretName }}
- secret:
    name: {{ quote .secretName }}
    items:
      - key: {{ quote .key }}
        path: token
{{- end }}
{{- end }}
{{- end }}

{{/* "true" if the webhook's URL has a user, a password or a query. */}}
{{- define "aks-audit.webhookUrlIsSecret" -}}
{{- if regexMatch "[@?]" (default "" .Values.webhook.url) }}true{{ end }}
{{- end }}

{{/* The audit policy as a map, from a map or from text. Empty if there is none or it is a preset; with a key Error if it is not YAML. */}}
{{- define "aks-audit.auditPolicy" -}}
{{- $policy := .Values.auditPolicy }}
{{- if and (kindIs "string" $policy) (not (has $policy (list "" "quiet" "security"))) }}
{{- $policy = fromYaml $policy }}
{{- end }}
{{- if and $policy (kindIs "map" $policy) }}
{{- merge (deepCopy $policy) (dict "apiVersion" "audit.k8s.io/v1" "kind" "Policy") | toYaml }}
{{- end }}
{{- end }}

{{/* The hub's connection string. KEDA looks for checkpoints under the spelling that it finds here, and they are in lower case. */}}
{{- define "aks-audit.hubConnection" -}}
{{- $text := default "" .Values.eventHub.connectionString | trim }}
{{- if (.Values.keda).enabled }}
{{- range regexFindAll "(?i)(^|;)\\s*(Endpoint=sb://[^/;]*|EntityPath=[^;]*)" $text -1 }}
{{- $key := regexFind "^;?\\s*[A-Za-z]+=" . }}
{{- $text = replace . (print $key (trimPrefix $key . | lower)) $text }}
{{- end }}
{{- end }}
{{- $text }}
{{- end }}

{{/* Secret settings, as a map of environment variables. */}}
{{- define "aks-audit.secrets" -}}
{{- $proxy := and .Values.httpsProxy (contains "@" .Values.httpsProxy) .Values.httpsProxy }}
{{- range $name, $value := dict
  "EhubNamespaceConnectionString" (include "aks-audit.hubConnection" .)
  "BlobStorageConnectionString" (default "" .Values.blobStorage.connectionString | trim)
  "WebSinkHeaders" (and .Values.webhook.headers (toJson .Values.webhook.headers))
  "WebSinkURL" (and (include "aks-audit.webhookUrlIsSecret" .) .Values.webhook.url)
  "HTTPS_PROXY" $proxy
  "https_proxy" $proxy
}}
{{- with $value }}
{{ $name }}: {{ quote . }}
{{- end }}
{{- end }}
{{- end }}

{{/* The other settings. Whole numbers go through int64: a float would be written as 1.048576e+06. */}}
{{- define "aks-audit.config" -}}
{{- $files := and .Values.secretProviderClass (not .Values.existingSecret) }}
{{- $webhook := include "aks-audit.webhookFiles" . }}
{{- $tls := .Values.webhook.tls | default dict }}
{{- $policy := include "aks-audit.auditPolicy" . | empty | ternary .Values.auditPolicy "/etc/aks-audit/policy/policy.yaml" }}
{{- $proxy := and .Values.httpsProxy (not (contains "@" .Values.httpsProxy)) .Values.httpsProxy }}
{{- range $name, $value := dict
  "EventHubNamespace" .Values.eventHub.namespace
  "EventHubName" .Values.eventHub.name
  "EhubNamespaceConnectionString_FILE" (and $files (not .Values.eventHub.namespace) "/mnt/secrets-store/EhubNamespaceConnectionString")
  "BlobAccountUrl" .Values.blobStorage.accountUrl
  "BlobStorageConnectionString_FILE" (and $files .Values.blobStorage.inExistingSecret "/mnt/secrets-store/BlobStorageConnectionString")
  "WebSinkURL" (and (include "aks-audit.webhookUrlIsSecret" . | empty) (include "aks-audit.webhookUrl" .))
  "WebSinkTokenFile" (and (.Values.webhook.token).secretName (print $webhook "/token"))
  "WebSinkCAFile" (and $tls.secretName $tls.ca (print $webhook "/ca.crt"))
  "WebSinkCertFile" (and $tls.secretName $tls.clientCertificate (print $webhook "/tls.crt"))
  "WebSinkKeyFile" (and $tls.secretName $tls.clientCertificate (print $webhook "/tls.key"))
  "AuditPolicyFile" $policy
  "ClusterAnnotation" .Values.clusterAnnotation
  "ResourceIds" (default list .Values.resourceIds | join ",")
  "TrustedCAFile" (and (or (.Values.trustedCA).configMapName (.Values.trustedCA).secretName) "/etc/aks-audit/trusted-ca/ca.crt")
  "HTTPS_PROXY" $proxy
  "https_proxy" (empty .Values.existingSecret | ternary $proxy nil)
  "NO_PROXY" .Values.noProxy
  "no_proxy" .Values.noProxy
}}
{{- /* The proxy in both spellings: Python prefers the lower-case one. An existing Secret may have it in the other only. */}}
{{- with $value }}
{{ $name }}: {{ quote . }}
{{- end }}
{{- end }}
{{- with .Values.eventHub }}
ConsumerGroup: {{ quote .consumerGroup }}
StartPosition: {{ quote .startPosition }}
HubTransport: {{ quote .transport }}
Categories: {{ join "," .categories | quote }}
LoadBalancingInterval: {{ quote .loadBalancingIntervalSeconds }}
OwnershipExpiry: {{ quote .ownershipExpirySeconds }}
ReceiveBufferBytes: {{ int64 .receiveBufferBytes | quote }}
{{- end }}
BlobContainerName: {{ quote .Values.blobStorage.containerName }}
StateDirectory: {{ quote .Values.persistence.stateDirectory }}
CheckpointInterval: {{ quote .Values.checkpointIntervalSeconds }}
DeadLetterMaxBytes: {{ int64 .Values.deadLetterMaxBytes | quote }}
{{- with .Values.webhook }}
WebSinkMaxEvents: {{ int64 .maxEvents | quote }}
WebSinkMaxBytes: {{ int64 .maxBytes | quote }}
WebSinkConcurrency: {{ int64 .concurrency | quote }}
WebSinkTimeout: {{ quote .timeoutSeconds }}
WebSinkMaxRejects: {{ int64 .maxRejects | quote }}
{{- end }}
VerboseLevel: {{ int64 .Values.verboseLevel | quote }}
LogFormat: {{ quote .Values.logFormat }}
ShutdownGrace: {{ quote .Values.shutdownGraceSeconds }}
StallTimeout: {{ quote .Values.stallTimeoutSeconds }}
HttpPort: {{ int64 .Values.metrics.port | quote }}
{{- end }}
