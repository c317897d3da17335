{{/* Removes what is null from a map and from all that is in it. Helm keeps null where the chart has no default to remove. */}}
{{- define "aks-audit.prune" -}}
{{- range $key, $value := . }}
{{- if and (kindIs "string" $key) (kindIs "invalid" $value) }}{{ $_ := unset $ $key }}
{{- else if or (kindIs "map" $value) (kindIs "slice" $value) }}{{ include "aks-audit.prune" $value }}{{ end }}
{{- end }}
{{- end }}

{{/* Name of the chart, for labels. An alias in a parent chart may have capitals and underscores. */}}
{{- define "aks-audit.name" -}}
{{- default .Chart.Name .Values.nameOverride | lower | replace "_" "-" | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* Name of the objects: that of the release, and that of the chart unless it is part of it. 55 leave room for "-metrics". */}}
{{- define "aks-audit.fullname" -}}
{{- $name := include "aks-audit.name" . }}
{{- $full := contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) }}
{{- default $full .Values.fullnameOverride | replace "." "-" | trunc 55 | trimSuffix "-" }}
{{- end }}

{{/* Name of the metrics Service: unlike other names, that of a Service begins with a letter. */}}
{{- define "aks-audit.metricsName" -}}
{{- regexReplaceAll "^([0-9])" (include "aks-audit.fullname" .) "r${1}" }}-metrics
{{- end }}

{{/* Labels of an object: a list of the root and its labels in addition, which win over commonLabels; nil for none. */}}
{{- define "aks-audit.labels" -}}
{{- with first . }}
{{- $chart := printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- $own := dict "helm.sh/chart" $chart "app.kubernetes.io/managed-by" .Release.Service "app.kubernetes.io/version" .Chart.AppVersion }}
{{- merge $own (include "aks-audit.selectorLabels" . | fromYaml) (default dict (last $)) (default dict .Values.commonLabels) | toYaml }}
{{- end }}
{{- end }}

{{- define "aks-audit.selectorLabels" -}}
app.kubernetes.io/name: {{ include "aks-audit.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{/* metadata of an object. A list: the root, its name, labels and annotations in addition; nil for none. */}}
{{- define "aks-audit.metadata" -}}
{{- $root := first . -}}
name: {{ index . 1 | quote }}
labels:
  {{- include "aks-audit.labels" (list $root (index . 2)) | nindent 2 }}
{{- with merge dict (default dict (index . 3)) (default dict $root.Values.commonAnnotations) }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "aks-audit.serviceAccountName" -}}
{{- default (.Values.serviceAccount.create | ternary (include "aks-audit.fullname" .) "default") .Values.serviceAccount.name }}
{{- end }}

{{- define "aks-audit.image" -}}
{{- with .Values.image }}
{{- $repository := .repository }}
{{- with ($.Values.global).imageRegistry }}
{{- $repository = printf "%s/%s" (trimSuffix "/" .) (regexReplaceAll "^([^/]*[.:][^/]*|localhost)/" $repository "") }}
{{- end }}
{{- printf "%s:%s" $repository (default $.Chart.AppVersion .tag) }}{{ with .digest }}@{{ . }}{{ end }}
{{- end }}
{{- end }}

{{/* imagePullSecrets of this chart and of its parents, as names or as maps. */}}
{{- define "aks-audit.imagePullSecrets" -}}
{{- $secrets := list }}
{{- range concat (default list .Values.imagePullSecrets) (default list (.Values.global).imagePullSecrets) }}
{{- $secrets = append $secrets (kindIs "map" . | ternary . (dict "name" .)) }}
{{- end }}
{{- with uniq $secrets }}{{ toYaml . }}{{ end }}
{{- end }}

{{- define "aks-audit.secretName" -}}
{{- default (include "aks-audit.fullname" .) .Values.existingSecret }}
{{- end }}

{{- define "aks-audit.claimName" -}}
{{- default (include "aks-audit.fullname" .) .Values.persistence.existingClaim }}
{{- end }}

{{/* "true" if extraEnv has a variable, or its _FILE: a list of the root and the variable's name. */}}
{{- define "aks-audit.inExtraEnv" -}}
{{- $name := last . }}
{{- range (first .).Values.extraEnv }}
{{- if has .name (list $name (print $name "_FILE")) }}true{{ end }}
{{- end }}
{{- end }}

{{/* "true" if replicas share the checkpoints in a storage account. */}}
{{- define "aks-audit.sharedStorage" -}}
{{- $extra := print (include "aks-audit.inExtraEnv" (list . "BlobStorageConnectionString")) (include "aks-audit.inExtraEnv" (list . "BlobAccountUrl")) }}
{{- with .Values.blobStorage }}
{{- if or .connectionString .accountUrl .inExistingSecret $extra }}true{{ end }}
{{- end }}
{{- end }}

{{/* "true" if the pod needs a volume of its own. */}}
{{- define "aks-audit.persistent" -}}
{{- if and .Values.persistence.enabled (not (include "aks-audit.sharedStorage" .)) }}true{{ end }}
{{- end }}

{{/* Where the forwarder posts to. */}}
{{- define "aks-audit.webhookUrl" -}}
{{- with .Values.webhook }}
{{- if .url }}{{ .url }}{{ else }}{{ printf "http://%s:%d/k8s_audit" .service.name (int .service.port) }}{{ end }}
{{- end }}
{{- end }}

{{/* The same without user, password and query. */}}
{{- define "aks-audit.webhookUrlShown" -}}
{{- regexReplaceAll "[?#].*" (regexReplaceAll "//[^/?#]*@" (include "aks-audit.webhookUrl" .) "//") "" }}
{{- end }}

{{/* "true" if the pod authenticates with Microsoft Entra ID. */}}
{{- define "aks-audit.entraId" -}}
{{- if or .Values.eventHub.namespace .Values.blobStorage.accountUrl (.Values.workloadIdentity).enabled (include "aks-audit.inExtraEnv" (list . "EventHubNamespace")) (include "aks-audit.inExtraEnv" (list . "BlobAccountUrl")) }}true{{ end }}
{{- end }}

{{/*
API version for a kind that is not part of Kubernetes, the first that the cluster serves, or that is given to helm template
without any of its kinds. A list: the root, the kind, the value that asks for it, and the API versions.
*/}}
{{- define "aks-audit.apiVersion" -}}
{{- $found := "" }}
{{- $versions := slice . 3 }}
{{- $served := printf " %s " (join " " (first .).Capabilities.APIVersions) }}
{{- range $versions }}
{{- if and (not $found) (or (contains (printf " %s/%s " . (index $ 1)) $served) (contains (printf " %s " .) $served | and (not (contains (printf " %s/" .) $served)))) }}{{ $found = . }}{{ end }}
{{- end }}
{{- if not $found }}
{{- $wanted := printf "%s/%s" (first $versions) (index . 1) }}
{{- fail (printf "%s needs %s%s, which the cluster does not serve: install what provides it, or turn %s off. helm template asks no cluster: add --api-versions %s" (index . 2) $wanted (len $versions | eq 1 | ternary "" (printf " or %s/%s" (last $versions) (index . 1))) (index . 2) $wanted) }}
{{- end }}
{{- $found }}
{{- end }}

{{/* API version of ServiceMonitor or PodMonitor: a list of the root, the kind and the value that asks for it. */}}
{{- define "aks-audit.monitorApiVersion" -}}
{{- with (first .).Values.metrics.monitorApiVersion }}{{ . }}{{ else }}
{{- include "aks-audit.apiVersion" (concat . (list "monitoring.coreos.com/v1" "azmonitoring.coreos.com/v1")) }}
{{- end }}
{{- end }}

{{/* Optional fields of a monitor's endpoint, from the values of its block. */}}
{{- define "aks-audit.endpoint" -}}
{{- range $key := list "interval" "scrapeTimeout" "relabelings" "metricRelabelings" }}
{{- with get $ $key }}
{{ $key }}: {{- kindIs "string" . | ternary (print " " .) (toYaml . | nindent 2) }}
{{- end }}
{{- end }}
{{- end }}

{{/* Azure Managed Prometheus drops monitors without these limits. */}}
{{- define "aks-audit.labelLimits" -}}
{{- if hasPrefix "azmonitoring" . }}
  labelLimit: 63
  labelNameLengthLimit: 511
  labelValueLengthLimit: 1023
{{- end }}
{{- end }}

{{/* Port of a URL, as a string. Not by urlParse, whose errors repeat the URL and its password. */}}
{{- define "aks-audit.port" -}}
{{- $host := regexFind "^[a-z]+://[^/?#]+" . }}
{{- regexMatch ":[0-9]+$" $host | ternary (regexFind "[0-9]+$" $host) (hasPrefix "https:" . | ternary "443" "80") }}
{{- end }}

{{/* Ports of the webhook: that of its URL, or both of the Service that the chart makes. */}}
{{- define "aks-audit.webhookPorts" -}}
{{- if .Values.webhook.url }}
- {{ include "aks-audit.port" .Values.webhook.url }}
{{- else }}
- {{ int .Values.webhook.service.port }}
- {{ .Values.webhook.service.targetPort }}
{{- end }}
{{- end }}

{{/* Bytes of a quantity, such as 1Gi. */}}
{{- define "aks-audit.bytes" -}}
{{- if kindIs "string" . }}
{{- $units := dict "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "E" 1e18 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 "Pi" 1125899906842624 "Ei" 1152921504606846976 }}
{{- mulf (regexFind "^[0-9.]+" .) (default 1 (get $units (regexFind "[A-Za-z]+$" .))) | int64 }}
{{- else }}{{ int64 . }}{{ end }}
{{- end }}

{{/* Value of app.kubernetes.io/name for the pod of helm test: not that of the forwarder, which Services and budgets select. */}}
{{- define "aks-audit.checkName" -}}
{{- include "aks-audit.name" . | trunc 57 }}-check
{{- end }}

{{/* The alerts of rules/aks-audit.yaml, their words in capital letters filled in, with runbook_url and the release's labels. */}}
{{- define "aks-audit.alerts" -}}
{{- with .Values.prometheusRule }}
{{- /* By the pods' names where the release is no label, or has several aliases of the chart. A long name has no second hyphen. */}}
{{- $byRelease := and $.Chart.IsRoot (not $.Values.metrics.scrapeAnnotations) }}
{{- $release := $byRelease | ternary (printf "app_kubernetes_io_instance=%q" $.Release.Name) (printf "pod=~\"%s-[^-]+-?[^-]+\"" (include "aks-audit.fullname" $)) }}
{{- $words := dict "SELECTOR" (default (printf "namespace=%q, %s" $.Release.Namespace $release) .selector | trimAll ", ") }}
{{- $_ := set $words "MAX_AGE_SECONDS" (mulf .retentionHours 3600 .retentionShare | int64) }}
{{- $_ := set $words "RETENTION_HOURS" .retentionHours }}
{{- $_ := set $words "DEAD_LETTERS" (int64 .deadLettersPerHour) }}
{{- $_ := set $words "QUIET_HOURS" .quietHours }}
{{- $rules := $.Files.Get "rules/aks-audit.yaml" }}
{{- range $word, $text := $words }}
{{- $rules = replace $word (toString $text) $rules }}
{{- end }}
{{- $alerts := list }}
{{- range fromYamlArray $rules }}
{{- if not (has .alert (default list $.Values.prometheusRule.disabled)) }}
{{- $labels := dict "namespace" $.Release.Namespace "release" ($.Chart.IsRoot | ternary $.Release.Name (include "aks-audit.fullname" $)) }}
{{- $_ := set . "labels" (merge .labels $labels (default dict $.Values.prometheusRule.additionalLabels)) }}
{{- $_ := set .annotations "runbook_url" (printf "%s#%s" $.Values.prometheusRule.runbookUrl (lower .alert)) }}
{{- $alerts = append $alerts . }}
{{- end }}
{{- end }}
{{- toYaml $alerts }}
{{- end }}
{{- end }}
