package daemon

import (
	"fmt"
	"strings"
)

// helpColumns is where lines of help are broken.
const helpColumns = 110

// HelpText returns what the command prints for --help, for a golden file beside the program. It reads
// nothing of the environment.
func HelpText(cmd *Command) string {
	cmd = cmd.withHealthcheck()
	return newInvocation(cmd, cmd.Name).helpText()
}

func (i *invocation) helpText() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s\n\nUsage:\n", i.path, i.cmd.Short)
	if i.cmd.Run != nil {
		fmt.Fprintf(&b, "  %s\n", strings.TrimSpace(i.path+" [flags] "+i.cmd.Args))
	}
	for _, c := range i.cmd.Commands {
		writeCommands(&b, i.path, c)
	}
	if i.cmd.Long != "" {
		fmt.Fprintf(&b, "\n%s\n", strings.TrimSpace(i.cmd.Long))
	}
	if i.own.HasAvailableFlags() {
		fmt.Fprintf(&b, "\nFlags:\n%s", i.own.FlagUsagesWrapped(helpColumns))
	}
	fmt.Fprintf(&b, "\nThe process:\n%s", i.process.FlagUsagesWrapped(helpColumns))
	fmt.Fprintf(&b, "\n'-' and '_' are alike in names. A flag that is not given is taken from the environment:\n"+
		"--log-level from %s; one value a line where a flag may be given several times.\n", envName("log-level"))
	return b.String()
}

func writeCommands(b *strings.Builder, path string, c *Command) {
	path += " " + c.Name
	if c.Run != nil {
		fmt.Fprintf(b, "  %s\n        %s\n", strings.TrimSpace(path+" [flags] "+c.Args), c.Short)
	}
	for _, s := range c.Commands {
		writeCommands(b, path, s)
	}
}
