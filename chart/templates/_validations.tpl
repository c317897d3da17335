{{/*
Rules across keys, one sentence each; those of one key are in values.schema.json. No sentence repeats a value, which may be a
secret. All that are broken are reported together.
*/}}

{{/* Keys that need a value: always, or where their block is used. */}}
{{- define "aks-audit.required" -}}
always: >-
  image.repository image.pullPolicy eventHub.consumerGroup eventHub.startPosition eventHub.transport eventHub.categories
  eventHub.loadBalancingIntervalSeconds eventHub.ownershipExpirySeconds eventHub.receiveBufferBytes
  blobStorage.containerName persistence.enabled persistence.size persistence.stateDirectory checkpointIntervalSeconds
  deadLetterMaxBytes webhook.maxEvents webhook.maxBytes webhook.concurrency webhook.timeoutSeconds webhook.maxRejects
  webhook.service.create webhook.service.name webhook.service.port webhook.service.targetPort verboseLevel logFormat
  replicaCount shutdownGraceSeconds stallTimeoutSeconds serviceAccount.create metrics.port
used: >-
  metrics.service.enabled metrics.service.port webhook.tls.ca webhook.token.key prometheusRule.retentionHours
  prometheusRule.retentionShare prometheusRule.deadLettersPerHour prometheusRule.quietHours prometheusRule.runbookUrl
  dashboard.label dashboard.labelValue keda.partitions keda.minReplicas keda.maxReplicas keda.messagesPerReplica
  keda.pollingIntervalSeconds
{{- end }}

{{/* Rules of the audit policy; the forwarder checks the rest at its start. Rules are counted from 1, as policy explain does. */}}
{{- define "aks-audit.policyErrors" -}}
{{- $policy := include "aks-audit.auditPolicy" . | fromYaml }}
{{- if or $policy.Error (and .Values.auditPolicy (not $policy) (not (has .Values.auditPolicy (list "quiet" "security")))) }}
- 'auditPolicy is none of: quiet, security, a Policy as a map, the text of a file with a Policy.'
{{- else if $policy }}
{{- if or (ne $policy.apiVersion "audit.k8s.io/v1") (ne $policy.kind "Policy") }}
- 'auditPolicy must have apiVersion audit.k8s.io/v1 and kind Policy, or neither.'
{{- end }}
{{- range $key := keys (omit $policy "apiVersion" "kind" "metadata" "rules" "omitStages" "omitManagedFields") | sortAlpha }}
- 'auditPolicy has an unknown field, {{ $key }}.'
{{- end }}
{{- if or (not $policy.rules) (not (kindIs "slice" $policy.rules)) }}
- 'auditPolicy.rules is empty: events that no rule names are dropped, so nothing would be forwarded.'
{{- else }}
{{- range $index, $rule := $policy.rules }}
{{- $name := printf "auditPolicy rule %d" (add1 $index) }}
{{- if not (kindIs "map" $rule) }}
- '{{ $name }} is not a map.'
{{- else }}
{{- if not (has $rule.level (list "None" "Metadata" "Request" "RequestResponse")) }}
- '{{ $name }}: level must be None, Metadata, Request or RequestResponse.'
{{- end }}
{{- range $key := keys (omit $rule "level" "users" "userGroups" "verbs" "namespaces" "resources" "nonResourceURLs" "omitStages" "omitManagedFields") | sortAlpha }}
- '{{ $name }} has an unknown field, {{ $key }}.'
{{- end }}
{{- if and $rule.nonResourceURLs (or $rule.resources $rule.namespaces) }}
- '{{ $name }} has nonResourceURLs and resources or namespaces. No request matches both: split it into two rules.'
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "aks-audit.validate" -}}
{{- include "aks-audit.prune" (omit .Values "extraObjects") }}
{{- $missing := list }}
{{- range $scope, $paths := include "aks-audit.required" . | fromYaml }}
{{- range $path := splitList " " $paths }}
{{- $parent := dict }}
{{- $value := $.Values }}
{{- range splitList "." $path }}
{{- $parent = $value }}
{{- $value = kindIs "map" $value | ternary (index (kindIs "map" $value | ternary $value dict) .) nil }}
{{- end }}
{{- $used := and (kindIs "map" $parent) (or (eq $path "metrics.service.enabled") (ne (toString (default dict $parent).enabled) "false")) }}
{{- if and (kindIs "invalid" $value) (or (eq $scope "always") $used) }}{{ $missing = append $missing $path }}{{ end }}
{{- end }}
{{- end }}
{{- with $missing }}
{{- fail (printf "No value for %s: either null was given, or helm upgrade --reuse-values took the values of an older chart that did not have it. Leave null out, or use --reset-then-reuse-values." (join ", " .)) }}
{{- end }}

{{- $hub := .Values.eventHub.connectionString | default "" | trim }}
{{- $blob := .Values.blobStorage.connectionString | default "" | trim }}
{{- $entity := regexFind "(?i)(^|;)\\s*EntityPath\\s*=\\s*[^;\\s]+" $hub | regexFind "[^=\\s]+$" }}
{{- $wrapped := "^[\"'{\\[]" }}
{{- $shared := include "aks-audit.sharedStorage" . }}
{{- $secret := or .Values.existingSecret .Values.secretProviderClass }}
{{- $existing := and (eq (default "" .Values.existingSecret) (include "aks-audit.fullname" .)) (lookup "v1" "Secret" .Release.Namespace .Values.existingSecret) | default dict }}
{{- $given := or $hub .Values.eventHub.namespace $secret (include "aks-audit.inExtraEnv" (list . "EhubNamespaceConnectionString")) (include "aks-audit.inExtraEnv" (list . "EventHubNamespace")) }}
{{- $blobLogins := list }}
{{- range $key := list "connectionString" "accountUrl" "inExistingSecret" }}
{{- if index $.Values.blobStorage $key }}{{ $blobLogins = append $blobLogins (print "blobStorage." $key) }}{{ end }}
{{- end }}
{{- $tls := default dict .Values.webhook.tls }}
{{- $headers := keys (default dict .Values.webhook.headers) | join " " | lower }}
{{- $logins := list (and (regexMatch "//[^/?#]*@" (default "" .Values.webhook.url)) "a user in webhook.url") (and (regexMatch "(^| )authorization( |$)" $headers) "Authorization in webhook.headers") (and (.Values.webhook.token).secretName "webhook.token.secretName") | compact }}
{{- $scrapes := list (and .Values.metrics.scrapeAnnotations "metrics.scrapeAnnotations") (and (.Values.metrics.serviceMonitor).enabled "metrics.serviceMonitor.enabled") (and (.Values.metrics.podMonitor).enabled "metrics.podMonitor.enabled") | compact }}
{{- $keda := and (.Values.keda).enabled .Values.keda | default dict }}
{{- $maxReplicas := int $keda.maxReplicas | default (int $keda.partitions) }}

{{- $budget := default dict .Values.podDisruptionBudget }}
{{- $replicas := int (default .Values.replicaCount $keda.minReplicas) }}
{{- $available := regexFind "^[0-9]+%?" (toString $budget.minAvailable) }}
{{- $kept := hasSuffix "%" $available | ternary (divf (mulf (trimSuffix "%" $available) $replicas) 100 | ceil) (float64 $available) }}
{{- $blocks := empty $available | ternary (not (regexMatch "[1-9]" (toString $budget.maxUnavailable))) (ge (float64 $kept) (float64 $replicas)) }}

{{- $volumes := dict "state" true "webhook" (include "aks-audit.webhookSecrets" .) "policy" (include "aks-audit.auditPolicy" .) "trusted-ca" (or (.Values.trustedCA).configMapName (.Values.trustedCA).secretName) "secrets-store" .Values.secretProviderClass "identity" (.Values.workloadIdentity).enabled }}
{{- $taken := list }}
{{- range .Values.extraVolumes }}{{ if get $volumes (toString .name) }}{{ $taken = append $taken .name }}{{ end }}{{ $_ := set $volumes (toString .name) true }}{{ end }}

{{- $errors := list }}
{{- range $rule := list
  (list (eq (toString .Values.enabled) "false")
    "enabled is false, but only the condition of a parent chart's dependency can turn this chart off: add condition: aks-audit.enabled to it.")
  (list (not $given) (print
    "No Event Hub is given: set eventHub.connectionString, existingSecret, secretProviderClass, or eventHub.namespace for Microsoft Entra ID."
    (.Release.IsUpgrade | ternary " helm upgrade forgets the --set values of earlier commands: add --reset-then-reuse-values, or keep your values in a file and pass it each time with --values." "")))
  (list (and $hub .Values.eventHub.namespace) "eventHub.connectionString is mutually exclusive with eventHub.namespace.")
  (list (regexMatch $wrapped $hub)
    "eventHub.connectionString has quotes or JSON around it: remove them. Azure CLI prints it alone with --query primaryConnectionString --output tsv.")
  (list (regexMatch "(?i)(AccountName|AccountKey|BlobEndpoint)=" $hub)
    "eventHub.connectionString is the connection string of a storage account: set blobStorage.connectionString to it, and eventHub.connectionString to that of the Event Hubs namespace, which begins with Endpoint=sb://.")
  (list (not (or (eq $hub "") (and (regexMatch "(?i)Endpoint\\s*=\\s*sb://[^/;]" $hub) (regexMatch "(?i)SharedAccess(Key|Signature)\\s*=." $hub)) (regexMatch "(?i)(AccountName|AccountKey|BlobEndpoint)=" $hub)))
    "eventHub.connectionString is not a connection string of Event Hubs, which has Endpoint=sb:// and SharedAccessKey= (or SharedAccessSignature=): copy all of it.")
  (list (and $entity .Values.eventHub.name (ne (lower $entity) (lower .Values.eventHub.name)))
    "eventHub.name contradicts the EntityPath in eventHub.connectionString: leave one of them out.")
  (list (regexMatch $wrapped $blob)
    "blobStorage.connectionString has quotes or JSON around it: remove them. Azure CLI prints it alone with --query connectionString --output tsv.")
  (list (regexMatch "(?i)Endpoint=sb://" $blob)
    "blobStorage.connectionString is a connection string of Event Hubs: set eventHub.connectionString to it, and blobStorage.connectionString to that of the storage account, which has AccountName=, or leave it empty.")
  (list (not (or (regexMatch "(?i)^$|UseDevelopmentStorage=true|Endpoint=sb://" $blob) (and (regexMatch "(?i)(AccountName|BlobEndpoint)=." $blob) (regexMatch "(?i)(AccountKey|SharedAccessSignature)=." $blob))))
    "blobStorage.connectionString is not a connection string of a storage account, which has AccountName= and AccountKey= (or BlobEndpoint= and SharedAccessSignature=): copy all of it.")
  (list (le (float64 .Values.eventHub.ownershipExpirySeconds) (float64 .Values.eventHub.loadBalancingIntervalSeconds))
    "eventHub.ownershipExpirySeconds must exceed eventHub.loadBalancingIntervalSeconds: otherwise partitions expire between two renewals.")
  (list (gt (len $blobLogins) 1) (printf "%s are mutually exclusive." (join ", " $blobLogins)))
  (list (and (eq (include "aks-audit.name" .) (dig "metadata" "labels" "app.kubernetes.io/name" "" $existing)) (ne "keep" (dig "metadata" "annotations" "helm.sh/resource-policy" "" $existing)))
    "existingSecret is the Secret that this release created, which Helm deletes as soon as existingSecret is set: copy it to a Secret of another name.")
  (list (and .Values.blobStorage.inExistingSecret (not $secret))
    "blobStorage.inExistingSecret requires existingSecret or secretProviderClass, which has BlobStorageConnectionString.")
  (list (and .Values.persistence.existingClaim $shared)
    "persistence.existingClaim is mutually exclusive with blobStorage, which stores the checkpoints.")
  (list (and .Values.persistence.existingClaim (not .Values.persistence.enabled))
    "persistence.existingClaim requires persistence.enabled: otherwise checkpoints and dead letters are lost with the pod.")
  (list (and (gt (int .Values.replicaCount) 1) (not $shared))
    "replicaCount above 1 requires checkpoints that replicas share: set blobStorage.connectionString or blobStorage.accountUrl (or blobStorage.inExistingSecret), or set replicaCount to 1.")
  (list (not (or $shared .Values.persistence.existingClaim (le (int64 .Values.deadLetterMaxBytes) (include "aks-audit.bytes" .Values.persistence.size | int64))))
    "deadLetterMaxBytes exceeds persistence.size: the volume would be full before old dead letters are deleted.")
  (list $taken (printf "extraVolumes: the pod has a volume of this name already, choose another: %s." (join ", " $taken)))
  (list (and (.Values.trustedCA).configMapName .Values.trustedCA.secretName) "trustedCA.configMapName is mutually exclusive with trustedCA.secretName.")
  (list (and (.Values.workloadIdentity).enabled (not .Values.workloadIdentity.clientId) .Values.serviceAccount.create)
    "workloadIdentity.enabled requires workloadIdentity.clientId, the client ID of the managed identity.")
  (list (not (regexMatch "^([a-zA-Z0-9.-]+(:[0-9]+)?/)?[a-z0-9]+([._/-]+[a-z0-9]+)*:[^/:@]+(@sha256:[0-9a-f]+)?$" (include "aks-audit.image" .)))
    "image.repository is a name such as registry.example.com/aks-audit, in lower case, and global.imageRegistry its first part: leave out https://, and set image.tag or image.digest instead of a tag or digest in it.")
  (list (and $tls.clientCertificate (not $tls.secretName))
    "webhook.tls.clientCertificate requires webhook.tls.secretName, a Secret with tls.crt and tls.key.")
  (list (and $tls.secretName (not (hasPrefix "https://" (default "" .Values.webhook.url))))
    "webhook.tls.secretName requires an https:// URL in webhook.url. If existingSecret has WebSinkURL, set webhook.url to the same URL without user, password and query.")
  (list (gt (len $logins) 1) (printf "%s are mutually exclusive: a request has one login." (join ", " $logins)))
  (list (gt (len $scrapes) 1)
    (printf "%s are mutually exclusive: each has the pods scraped, and everything would be counted more than once." (join ", " $scrapes)))
  (list (and (.Values.metrics.serviceMonitor).enabled (not (.Values.metrics.service).enabled))
    "metrics.serviceMonitor.enabled requires metrics.service.enabled. metrics.podMonitor.enabled does not need the Service.")
  (list (and $budget.enabled $replicas $blocks)
    "podDisruptionBudget lets no pod be evicted, so no node can be drained and AKS refuses to upgrade the cluster: set maxUnavailable to 1 and remove minAvailable, or use more replicas than minAvailable.")
  (list (and $keda (not $shared))
    "keda.enabled requires checkpoints that replicas share, which KEDA reads too: set blobStorage.connectionString or blobStorage.accountUrl (or blobStorage.inExistingSecret).")
  (list (and $keda $shared (ne (empty .Values.eventHub.namespace) (empty .Values.blobStorage.accountUrl)))
    "keda.enabled requires the same authentication for hub and storage account: connection strings for both, or eventHub.namespace and blobStorage.accountUrl.")
  (list (and $keda $shared (not (or $hub .Values.existingSecret .Values.eventHub.namespace)))
    "keda.enabled requires the connection strings in a Secret, where KEDA reads them: set existingSecret to the one that the CSI driver syncs, or use Microsoft Entra ID.")
  (list (and $keda (gt $maxReplicas (int $keda.partitions)))
    "keda.maxReplicas exceeds keda.partitions: additional replicas would have no partition to read.")
  (list (and $keda (gt (int $keda.minReplicas) $maxReplicas))
    "keda.minReplicas exceeds keda.maxReplicas (or keda.partitions if that is 0).")
}}
{{- if first $rule }}{{ $errors = append $errors (last $rule) }}{{ end }}
{{- end }}

{{- range $name, $value := empty $secret | ternary dict (include "aks-audit.secrets" . | fromYaml) }}
{{- $key := get (dict "EhubNamespaceConnectionString" "eventHub.connectionString" "BlobStorageConnectionString" "blobStorage.connectionString" "WebSinkHeaders" "webhook.headers" "WebSinkURL" "webhook.url with a user, password or query" "HTTPS_PROXY" "httpsProxy with a user or password") $name }}
{{- if and $key (or $.Values.existingSecret (hasSuffix "ConnectionString" $name)) }}
{{- $errors = append $errors (printf "%s is mutually exclusive with %s: store it there as %s, and remove it from the values." $key (empty $.Values.existingSecret | ternary "secretProviderClass" "existingSecret") $name) }}
{{- end }}
{{- end }}

{{- with concat $errors (include "aks-audit.policyErrors" . | fromYamlArray) }}
{{- fail (join "\n" .) }}
{{- end }}
{{- end }}
