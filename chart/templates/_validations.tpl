{{/*
Rules across keys, a sentence each; those of one key are in values.schema.json. No sentence repeats a value: it may be a
secret. All that are broken are reported together.
*/}}
{{- define "aks-audit.validate" -}}
{{- $errors := list }}
{{- $hub := .Values.eventHub.connectionString | trim }}
{{- $blob := .Values.blobStorage.connectionString | trim }}

{{- if not (or $hub .Values.eventHub.namespace .Values.existingSecret) }}
{{- $errors = append $errors "No Event Hub is given: set eventHub.connectionString, or existingSecret, or eventHub.namespace to log in with Microsoft Entra ID." }}
{{- end }}
{{- if and $hub .Values.eventHub.namespace }}
{{- $errors = append $errors "eventHub.connectionString and eventHub.namespace are two ways of logging in: leave one of them out." }}
{{- end }}
{{- if regexMatch "(?i)(AccountName|AccountKey|BlobEndpoint)=" $hub }}
{{- $errors = append $errors "eventHub.connectionString holds a storage account's connection string: move it to blobStorage.connectionString and set the Event Hubs namespace's here, which begins with Endpoint=sb://." }}
{{- end }}
{{- if regexMatch "(?i)Endpoint=sb://" $blob }}
{{- $errors = append $errors "blobStorage.connectionString holds an Event Hubs connection string: move it to eventHub.connectionString and set the storage account's here, which holds AccountName=, or leave it empty." }}
{{- end }}
{{- if le (float64 .Values.eventHub.ownershipExpirySeconds) (float64 .Values.eventHub.loadBalancingIntervalSeconds) }}
{{- $errors = append $errors "eventHub.ownershipExpirySeconds must exceed eventHub.loadBalancingIntervalSeconds: partitions are lost between two renewals otherwise." }}
{{- end }}

{{- if kindIs "map" .Values.auditPolicy }}
{{- range $index, $rule := .Values.auditPolicy.rules }}
{{- if and $rule.nonResourceURLs (or $rule.resources $rule.namespaces) }}
{{- $errors = append $errors (printf "auditPolicy: rule %d is for nonResourceURLs and for resources or namespaces, and no request has both: make it two rules." (add1 $index)) }}
{{- end }}
{{- end }}
{{- end }}

{{- $logins := list }}
{{- range $key := list "connectionString" "accountUrl" "inExistingSecret" }}
{{- if index $.Values.blobStorage $key }}{{ $logins = append $logins (print "blobStorage." $key) }}{{ end }}
{{- end }}
{{- if gt (len $logins) 1 }}
{{- $errors = append $errors (printf "%s are two ways of logging in: leave one of them out." (join " and " $logins)) }}
{{- end }}
{{- if and .Values.blobStorage.inExistingSecret (not .Values.existingSecret) }}
{{- $errors = append $errors "blobStorage.inExistingSecret needs existingSecret, the name of the Secret with BlobStorageConnectionString." }}
{{- end }}
{{- if and .Values.persistence.existingClaim (include "aks-audit.sharedStorage" .) }}
{{- $errors = append $errors "persistence.existingClaim has no effect with blobStorage, which keeps the checkpoints: leave one of them out." }}
{{- end }}
{{- if and (gt (int .Values.replicaCount) 1) (not (include "aks-audit.sharedStorage" .)) }}
{{- $errors = append $errors "replicaCount above 1 needs checkpoints that replicas share: set blobStorage.connectionString or blobStorage.accountUrl (or blobStorage.inExistingSecret), or set replicaCount to 1." }}
{{- end }}

{{- if .Values.existingSecret }}
{{- range $name, $value := include "aks-audit.secrets" . | fromYaml }}
{{- $key := get (dict "EhubNamespaceConnectionString" "eventHub.connectionString" "BlobStorageConnectionString" "blobStorage.connectionString" "WebSinkHeaders" "webhook.headers" "WebSinkURL" "webhook.url with a user, password or query in it") $name }}
{{- $errors = append $errors (printf "existingSecret is used in place of %s: put that into the Secret as %s and leave it out of the values." $key $name) }}
{{- end }}
{{- end }}

{{- with .Values.workloadIdentity }}
{{- if and .enabled (not .clientId) $.Values.serviceAccount.create }}
{{- $errors = append $errors "workloadIdentity.enabled needs workloadIdentity.clientId, the client ID of the managed identity." }}
{{- end }}
{{- end }}

{{- with .Values.webhook.tls }}
{{- if and .clientCertificate (not .secretName) }}
{{- $errors = append $errors "webhook.tls.clientCertificate needs webhook.tls.secretName, the Secret with tls.crt and tls.key." }}
{{- end }}
{{- if and .secretName (not (hasPrefix "https://" $.Values.webhook.url)) }}
{{- $errors = append $errors "webhook.tls.secretName has no effect on plain HTTP: set webhook.url to an https:// address, or leave it out." }}
{{- end }}
{{- end }}

{{- with .Values.metrics }}
{{- $ways := list }}
{{- if .scrapeAnnotations }}{{ $ways = append $ways "metrics.scrapeAnnotations" }}{{ end }}
{{- range $key := list "serviceMonitor" "podMonitor" }}
{{- if (default dict (get $.Values.metrics $key)).enabled }}{{ $ways = append $ways (printf "metrics.%s.enabled" $key) }}{{ end }}
{{- end }}
{{- if gt (len $ways) 1 }}
{{- $errors = append $errors (printf "%s would each have the pods scraped, and everything counted more than once: leave one of them on." (join " and " $ways)) }}
{{- end }}
{{- if and (has "metrics.serviceMonitor.enabled" $ways) (not .service.enabled) }}
{{- $errors = append $errors "metrics.serviceMonitor.enabled needs metrics.service.enabled: turn that on, or use metrics.podMonitor.enabled, which needs no Service." }}
{{- end }}
{{- end }}

{{- range $key := list "prometheusRule" "dashboard" "networkPolicy" "keda" }}
{{- $group := default dict (get $.Values $key) }}
{{- if and $group.enabled (eq (len $group) 1) }}
{{- $errors = append $errors (printf "%s came with a later chart than the values that helm upgrade --reuse-values takes: use --reset-then-reuse-values." $key) }}
{{- end }}
{{- end }}

{{- with .Values.keda }}
{{- if and .enabled .partitions }}
{{- $max := default .partitions .maxReplicas | int }}
{{- if not (include "aks-audit.sharedStorage" $) }}
{{- $errors = append $errors "keda.enabled needs checkpoints that replicas share, which KEDA reads too: set blobStorage.connectionString or blobStorage.accountUrl (or blobStorage.inExistingSecret)." }}
{{- else if ne (empty $.Values.eventHub.namespace) (empty $.Values.blobStorage.accountUrl) }}
{{- $errors = append $errors "keda.enabled needs hub and storage account to be logged in to in the same way: both by connection string, or both by eventHub.namespace and blobStorage.accountUrl." }}
{{- end }}
{{- if gt $max (int .partitions) }}
{{- $errors = append $errors "keda.maxReplicas exceeds keda.partitions: a replica more than the hub has partitions reads nothing." }}
{{- end }}
{{- if gt (int .minReplicas) $max }}
{{- $errors = append $errors "keda.minReplicas exceeds keda.maxReplicas (or keda.partitions, where that is 0)." }}
{{- end }}
{{- if regexMatch "(Endpoint=sb://[^/;]*|EntityPath=[^;]*)[A-Z]" $hub }}
{{- $errors = append $errors "eventHub.connectionString has capital letters in the namespace or in EntityPath: checkpoints lie at paths in lower case, and KEDA would find none. Write them in lower case, which is the same to Event Hubs." }}
{{- end }}
{{- end }}
{{- end }}

{{- with $errors }}
{{- fail (join "\n" .) }}
{{- end }}
{{- end }}
