//go:build !unix

package embedded

import "os"

// lockDir opens the lock file; this system offers no lock that ends with the
// process, so two processes on one directory are the operator's to avoid.
func lockDir(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o640)
}
