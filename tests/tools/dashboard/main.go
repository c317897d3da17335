// Dashboard fails unless standard input is a Grafana dashboard: every field is known, of its type, and none is missing.
package main

import (
	"fmt"
	"io"
	"os"

	"github.com/grafana/grafana-foundation-sdk/go/cog/plugins"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
)

func main() {
	plugins.RegisterDefaultPlugins() // panels and queries are checked by their plugins
	found := dashboard.Dashboard{}
	text, err := io.ReadAll(os.Stdin)
	if err == nil {
		err = found.UnmarshalJSONStrict(text)
	}
	// A list of no errors is an error to Go (grafana-foundation-sdk 0.0.22).
	if err == nil || err.Error() == "" {
		err = found.Validate()
	}
	if err != nil && err.Error() != "" {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
