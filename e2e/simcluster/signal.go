package simcluster

import (
	"encoding/binary"
	"encoding/hex"
	"math"
	"time"
)

// mix is a hash of its arguments (splitmix64 chained): the only source of chance here.
func mix(seed uint64, parts ...uint64) uint64 {
	h := seed
	for _, p := range parts {
		h = splitmix(h ^ splitmix(p))
	}
	return splitmix(h)
}

func splitmix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// unit maps a hash to [0,1).
func unit(h uint64) float64 { return float64(h>>11) / (1 << 53) }

// between maps a hash to lo..hi, both included.
func between(h uint64, lo, hi int) int { return lo + int(h%uint64(hi-lo+1)) }

// uidOf formats a hash as a version 4 UUID.
func uidOf(h uint64) string {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], splitmix(h))
	binary.BigEndian.PutUint64(b[8:], splitmix(h^0x5bd1e995))
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	var s [36]byte
	hex.Encode(s[0:8], b[0:4])
	s[8] = '-'
	hex.Encode(s[9:13], b[4:6])
	s[13] = '-'
	hex.Encode(s[14:18], b[6:8])
	s[18] = '-'
	hex.Encode(s[19:23], b[8:10])
	s[23] = '-'
	hex.Encode(s[24:36], b[10:16])
	return string(s[:])
}

// suffix is n characters of the alphabet that Kubernetes makes name suffixes of.
func suffix(h uint64, n int) string {
	const alphabet = "bcdfghjklmnpqrstvwxz2456789"
	b := make([]byte, n)
	for i := range b {
		b[i] = alphabet[h%uint64(len(alphabet))]
		h /= uint64(len(alphabet))
	}
	return string(b)
}

const (
	samplePeriod = 15 * int64(time.Second) // mean time between two samples of one cgroup
	sampleJitter = 5 * int64(time.Second)  // so the gap is 10 to 20 s
	sinSteps     = 1024
)

// sampleAt gives the moment (Unix ns) of the newest sample at time now of the cgroup id, and of the one before. The gaps
// are 10 to 20 s and differ each time, as housekeeping of a real kubelet does.
func sampleAt(id uint64, now int64) (last, before int64) {
	phase := int64(splitmix(id^0xa5a5) % uint64(samplePeriod))
	k := (now - phase) / samplePeriod
	at := func(k int64) int64 {
		return phase + k*samplePeriod + int64(splitmix(id+uint64(k)*0x9e3779b97f4a7c15)%uint64(sampleJitter))
	}
	last = at(k)
	if last > now {
		k--
		last = at(k)
	}
	return last, at(k - 1)
}

var (
	// sinTable is one period of the sine, and its first value again.
	sinTable = func() (t [sinSteps + 1]float64) {
		for i := range t {
			t[i] = math.Sin(2 * math.Pi * float64(i) / sinSteps)
		}
		return t
	}()
	// waves of load, in turns per second: a minute and a half, a quarter of an hour, a day.
	waveSpeed = [3]float64{1.0 / 97, 1.0 / 907, 1.0 / 86400}
)

// sine of turns (not negative), between the steps of the table along a straight line: quick, and never steeper than the
// true one, on which integral relies.
func sine(turns float64) float64 {
	x := (turns - float64(int64(turns))) * sinSteps
	i := int(x)
	return sinTable[i] + (sinTable[i+1]-sinTable[i])*(x-float64(i))
}

// integral is what a rate of perSecond, waving around it, has summed up after age ns: monotone in age, since the
// amplitudes add up to less than one.
func integral(id uint64, perSecond float64, age int64) uint64 {
	if age <= 0 || perSecond <= 0 {
		return 0
	}
	h := splitmix(id ^ 0xc0ffee)
	sec := float64(age) / 1e9
	sum := sec
	for i, speed := range waveSpeed {
		p := h >> (16 * i) & (sinSteps - 1)
		amp := (0.06 + 0.22*float64(h>>(16*i+8)&255)/255) / (2 * math.Pi * speed)
		sum += amp * (sine(speed*sec+float64(p)/sinSteps) - sinTable[p])
	}
	return uint64(max(perSecond*sum, 0))
}

// wander is a smooth random walk in [-1,1]: value noise of three octaves (40 s, 10 min, 3 h).
func wander(id uint64, t int64) float64 {
	return 0.15*octave(id, t, 40) + 0.35*octave(id+1, t, 600) + 0.5*octave(id+2, t, 10800)
}

func octave(id uint64, t, step int64) float64 {
	step *= int64(time.Second)
	k := t / step
	f := float64(t-k*step) / float64(step)
	f = f * f * (3 - 2*f)
	a := unit(splitmix(id*31 + uint64(k)))
	b := unit(splitmix(id*31 + uint64(k) + 1))
	return 2*(a+(b-a)*f) - 1
}

// page rounds down to whole pages of memory.
func page(v float64) uint64 {
	if v <= 0 {
		return 0
	}
	return uint64(v) &^ 4095
}
