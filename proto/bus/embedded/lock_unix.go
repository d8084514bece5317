//go:build unix

package embedded

import (
	"errors"
	"os"
	"syscall"
)

// lockDir takes the lock file for this process; the kernel gives it back when the
// process ends, however it ends.
func lockDir(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o640)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, errors.New("another process uses it: stop that one, or choose another directory")
		}
		return nil, err
	}
	return f, nil
}
