package scraper

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/heapstream/heapstream/proto/bus/bustest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, bustest.LeakOptions()...) }
